#include "ops/exchange_push.h"

#include <c10/util/irange.h>

#include <numeric>

#include "cuda/kernels.h"
#include "ops/parts.h"

namespace fvd::ops {
namespace {

/// Adds what goes from this rank's tensor to each rank's result. Results are contiguous, so their
/// strides follow from their sizes, which follow from the splits.
void add(cuda::CopyPlan& plan, const ExchangeItem& item, std::size_t index, std::size_t rank,
         std::size_t scatter_dim, std::size_t gather_dim, const Reached& reached) {
  const auto& x = item.in.memory;
  const auto& [scatter, gather] = item.splits;
  const auto element = static_cast<std::size_t>(x.element_size());
  const auto bytes = static_cast<std::int64_t>(element);
  const auto first = gather.begin();
  const auto place = static_cast<std::ptrdiff_t>(rank);
  const std::int64_t gathered = std::accumulate(first, first + place, std::int64_t{0});
  std::int64_t scattered = 0;
  if (x.numel() == 0) return;
  for (const auto peer : c10::irange(scatter.size())) {
    if (scatter[peer] == 0) continue;  // there is no such result to point into
    auto result = x.sizes().vec();
    result[scatter_dim] = scatter[peer];
    result[gather_dim] = std::accumulate(first, gather.end(), std::int64_t{0});
    auto part = x.sizes().vec();
    part[scatter_dim] = scatter[peer];
    const auto strides = contiguous_strides(result);
    plan.add({item.in.data + scattered * x.stride(static_cast<std::int64_t>(scatter_dim)) * bytes,
              reached.place(peer, index) + gathered * strides[gather_dim] * bytes, part,
              x.strides(), strides, element});
    scattered += scatter[peer];
  }
}

}  // namespace

std::optional<std::string> exchange_by_push(Communicator& communicator, const Call& call,
                                            const std::vector<ExchangeItem>& items,
                                            std::size_t scatter_dim, std::size_t gather_dim) {
  std::vector<Block> outputs;
  for (const ExchangeItem& item : items) outputs.push_back(item.out.block());
  const auto rank = static_cast<std::size_t>(communicator.rank());
  return communicator.push(
      outputs, items.front().in.type,
      [&](const Reached& reached) {
        cuda::CopyPlan plan;
        for (const auto i : c10::irange(items.size()))
          add(plan, items[i], i, rank, scatter_dim, gather_dim, reached);
        cuda::enqueue(plan, call.stream, reached.given_up);
      },
      call);
}

}  // namespace fvd::ops
