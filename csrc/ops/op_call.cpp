#include "ops/op_call.h"

#include <ATen/ops/empty.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "c10d/lookup.h"

namespace fvd::ops {
namespace {

// x86-64's; elsewhere the range is rounded to what no kernel minds.
constexpr std::uintptr_t kHugePage = 2 << 20;

/// A large result comes from fresh memory and is written at once: a fault for each of its small
/// pages would take as long as the copy. The kernel may decline, which changes nothing but time.
void advise_huge_pages(const at::Tensor& result) {
  if (!result.is_cpu() || result.nbytes() < 2 * kHugePage) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(result.data_ptr());
  const auto first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const auto last = (begin + result.nbytes()) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

}  // namespace

OpCall::OpCall(const char* operation, std::string_view group, std::int64_t size, std::int64_t rank)
    : operation_(operation), backend_(c10d_::find_backend(std::string(group))) {
  TORCH_CHECK_VALUE(backend_->getSize() == size, site().prefix(), "group_size is ", size,
                    " but the group has ", backend_->getSize(), " ranks");
  TORCH_CHECK_VALUE(rank == kAnyRank || backend_->getRank() == rank, site().prefix(),
                    "group_rank is ", rank, " but this is rank ", backend_->getRank());
}

int OpCall::checked_root(std::int64_t root, const char* what) const {
  TORCH_CHECK_VALUE(root >= 0 && root < backend_->getSize(), site().prefix(), what, " is ", root,
                    "; the group has ranks 0 to ", backend_->getSize() - 1);
  return static_cast<int>(root);
}

ReduceKind reduce_kind(const c10d_::Site& site, std::string_view op) {
  if (op == "sum") return ReduceKind::kSum;
  if (op == "avg") return ReduceKind::kAvg;
  if (op == "product") return ReduceKind::kProduct;
  if (op == "min") return ReduceKind::kMin;
  if (op == "max") return ReduceKind::kMax;
  if (op == "band") return ReduceKind::kBitAnd;
  if (op == "bor") return ReduceKind::kBitOr;
  if (op == "bxor") return ReduceKind::kBitXor;
  TORCH_CHECK_VALUE(false, site.prefix(), "op is \"", op,
                    "\"; it must be one of sum, avg, product, min, max, band, bor, bxor");
}

void check_linear_reduction(const char* operation, const std::string& group, std::string_view op) {
  TORCH_CHECK_NOT_IMPLEMENTED(op == "sum" || op == "avg", "fastvideo: derivative of ", operation,
                              " on group \"", group, "\": op \"", op,
                              "\" has no gradient or tangent here, only sum and avg have; call it "
                              "with x.detach()");
}

std::size_t checked_dim(const c10d_::Site& site, const at::Tensor& x, std::int64_t dim) {
  TORCH_CHECK_VALUE(dim >= 0 && dim < x.dim(), site.prefix(), "dim is ", dim, " but x has ",
                    x.dim(), " dimensions, shape ", x.sizes());
  return static_cast<std::size_t>(dim);
}

std::vector<std::int64_t> sizes_of_ranks(const c10d_::Site& site, at::OptionalIntArrayRef given,
                                         std::int64_t total, std::int64_t ranks, const char* what) {
  if (!given.has_value()) {
    TORCH_CHECK_VALUE(total % ranks == 0, site.prefix(), "size ", total, " is no multiple of the ",
                      ranks, " ranks; give ", what, " or pad it");
    return std::vector<std::int64_t>(static_cast<std::size_t>(ranks), total / ranks);
  }
  auto sizes = given->vec();
  TORCH_CHECK_VALUE(sizes.size() == static_cast<std::size_t>(ranks), site.prefix(), what, " are ",
                    *given, ", ", sizes.size(), " numbers for ", ranks, " ranks");
  std::int64_t sum = 0;
  for (const std::int64_t size : sizes) {
    // None may exceed what is left: the sum cannot overflow.
    TORCH_CHECK_VALUE(size >= 0 && size <= total - sum, site.prefix(), what, " ", *given,
                      " do not divide a size of ", total);
    sum += size;
  }
  TORCH_CHECK_VALUE(sum == total, site.prefix(), what, " ", *given, " add up to ", sum,
                    " but the size is ", total);
  return sizes;
}

bool all_equal(const std::vector<std::int64_t>& sizes) {
  return std::all_of(sizes.begin(), sizes.end(),
                     [&](std::int64_t size) { return size == sizes.front(); });
}

at::Tensor empty_as(const at::Tensor& x, at::IntArrayRef sizes) {
  auto result = at::empty(sizes, x.options().memory_format(at::MemoryFormat::Contiguous));
  advise_huge_pages(result);
  return result;
}

}  // namespace fvd::ops
