// all_to_all_4d of several tensors at once, and for parts of any sizes. See exchange.h.
#include <ATen/ops/zeros_like.h>
#include <c10/util/irange.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "ops/differentiable.h"
#include "ops/exchange.h"
#include "ops/maybe_sizes.h"
#include "ops/op_call.h"

namespace fvd::ops {
namespace {

using Tensors = std::vector<at::Tensor>;

/// The sizes of tensor `i` out of those of all `count`.
at::OptionalIntArrayRef sizes_of(const c10d_::Site& site, at::OptionalIntArrayRef all,
                                 std::size_t i, std::size_t count, std::int64_t ranks,
                                 const char* what) {
  if (!all.has_value()) return std::nullopt;
  const auto each = static_cast<std::size_t>(ranks);
  TORCH_CHECK_VALUE(all->size() == count * each, site.prefix(), what, " are ", *all, ", ",
                    all->size(), " numbers for ", count, " tensors and ", ranks, " ranks");
  return all->slice(i * each, each);
}

Tensors all_to_all_4d_list(at::TensorList xs, std::int64_t scatter_dim, std::int64_t gather_dim,
                           at::OptionalIntArrayRef scatter_sizes,
                           at::OptionalIntArrayRef gather_sizes, std::string_view group_name,
                           std::int64_t group_size, std::int64_t group_rank) {
  const OpCall call("all_to_all_4d", group_name, group_size, group_rank);
  const auto site = call.site();
  TORCH_CHECK_VALUE(!xs.empty(), site.prefix(), "there is no tensor in the list");
  std::vector<Splits> splits;
  for (const auto i : c10::irange(xs.size())) {
    check_dims(site, xs[i], scatter_dim, gather_dim);
    const auto scatter = sizes_of(site, scatter_sizes, i, xs.size(), group_size, "scatter_sizes");
    const auto gather = sizes_of(site, gather_sizes, i, xs.size(), group_size, "gather_sizes");
    const auto own = xs[i].size(gather_dim);
    const auto total =
        gather.has_value() ? std::reduce(gather->begin(), gather->end()) : own * group_size;
    splits.push_back(
        {sizes_of_ranks(site, scatter, xs[i].size(scatter_dim), group_size, "scatter_sizes"),
         sizes_of_ranks(site, gather, total, group_size, "gather_sizes")});
    TORCH_CHECK_VALUE(splits.back().gather[call.rank()] == own, site.prefix(), "gather_sizes ",
                      at::IntArrayRef(splits.back().gather), " say ",
                      splits.back().gather[call.rank()], " for rank ", call.rank(),
                      " but the tensor has shape ", xs[i].sizes(), ", ", own, " along dimension ",
                      gather_dim);
  }
  return exchange(call, xs, static_cast<std::size_t>(scatter_dim),
                  static_cast<std::size_t>(gather_dim), splits);
}

struct ListCall {
  std::int64_t scatter_dim;
  std::int64_t gather_dim;
  MaybeSizes scatter_sizes;
  MaybeSizes gather_sizes;
  std::string group;
  std::int64_t size;
  std::int64_t rank;

  Tensors operator()(at::TensorList xs) const {
    static const auto op =
        find_op<Tensors(at::TensorList, std::int64_t, std::int64_t, at::OptionalSymIntArrayRef,
                        at::OptionalSymIntArrayRef, std::string_view, std::int64_t, std::int64_t)>(
            "fastvideo_dist::all_to_all_4d_list");
    return op.call(xs, scatter_dim, gather_dim, ref(scatter_sizes), ref(gather_sizes), group, size,
                   rank);
  }
  ListCall inverse() const {
    return {gather_dim, scatter_dim, gather_sizes, scatter_sizes, group, size, rank};
  }
  void save(Saved& saved) const {
    saved["scatter_dim"] = scatter_dim;
    saved["gather_dim"] = gather_dim;
    save_sizes(saved, "scatter_sizes", scatter_sizes);
    save_sizes(saved, "gather_sizes", gather_sizes);
    saved["group"] = group;
    saved["size"] = size;
    saved["rank"] = rank;
  }
  static ListCall load(const Saved& saved) {
    return {saved.at("scatter_dim").toInt(),
            saved.at("gather_dim").toInt(),
            load_sizes(saved, "scatter_sizes"),
            load_sizes(saved, "gather_sizes"),
            saved.at("group").toStringRef(),
            saved.at("size").toInt(),
            saved.at("rank").toInt()};
  }
};

/// All tensors go back together as well, also those whose gradient nobody asked for: which they
/// are may differ between the ranks.
class ListExchange : public torch::autograd::Function<ListExchange> {
 public:
  // All that backward uses is in saved_data, so compiled autograd may trace it.
  static constexpr bool is_traceable = true;

  static Tensors forward(torch::autograd::AutogradContext* context, const at::TensorList& xs,
                         const ListCall& call) {
    call.save(context->saved_data);
    const at::AutoDispatchBelowADInplaceOrView below;
    return call(xs);
  }

  static Tensors backward(torch::autograd::AutogradContext* context, const Tensors& gradients) {
    auto result = ListCall::load(context->saved_data).inverse()(gradients);
    result.emplace_back();  // of the second argument
    return result;
  }
};

/// As the one of a single tensor. All tangents travel together too; where there is none it is zero.
Tensors differentiable(at::TensorList xs, const ListCall& call) {
  if (std::any_of(xs.begin(), xs.end(), has_tangent)) {
    Tensors primals;
    Tensors tangents;
    for (const auto& x : xs) {
      primals.push_back(x._fw_primal(kForwardLevel));
      tangents.push_back(has_tangent(x) ? x._fw_grad(kForwardLevel) : at::zeros_like(x));
    }
    auto ys = differentiable(primals, call);
    const auto along = differentiable(tangents, call);
    for (const auto i : c10::irange(ys.size()))
      ys[i]._set_fw_grad(along[i], kForwardLevel, /*is_inplace_op=*/false);
    return ys;
  }
  const auto asks = [](const at::Tensor& x) { return x.requires_grad(); };
  if (at::GradMode::is_enabled() && std::any_of(xs.begin(), xs.end(), asks))
    return ListExchange::apply(xs, call);
  const at::AutoDispatchBelowADInplaceOrView below;
  return call(xs);
}

Tensors all_to_all_4d_list_autograd(at::TensorList xs, std::int64_t scatter_dim,
                                    std::int64_t gather_dim,
                                    at::OptionalSymIntArrayRef scatter_sizes,
                                    at::OptionalSymIntArrayRef gather_sizes,
                                    std::string_view group_name, std::int64_t group_size,
                                    std::int64_t group_rank) {
  return differentiable(
      xs, ListCall{scatter_dim, gather_dim, copy_of(scatter_sizes), copy_of(gather_sizes),
                   std::string(group_name), group_size, group_rank});
}

}  // namespace

TORCH_LIBRARY_IMPL(fastvideo_dist, CPU, library) {
  library.impl("all_to_all_4d_list", all_to_all_4d_list);
}
TORCH_LIBRARY_IMPL(fastvideo_dist, CUDA, library) {
  library.impl("all_to_all_4d_list", all_to_all_4d_list);
}

TORCH_LIBRARY_IMPL(fastvideo_dist, Autograd, library) {
  library.impl("all_to_all_4d_list", all_to_all_4d_list_autograd);
}

}  // namespace fvd::ops
