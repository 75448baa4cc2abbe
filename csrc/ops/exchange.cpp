#include "ops/exchange.h"

#include <c10/util/SmallVector.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <numeric>

#include "ops/exchange_gpu.h"
#include "ops/parts.h"

namespace fvd::ops {
namespace {

/// Whether every rank sends as many bytes to every other: then no lengths need comparing. All
/// ranks come to the same answer, since all have the same splits.
bool is_even(const std::vector<ExchangeItem>& items) {
  for (const auto& item : items) {
    if (!all_equal(item.splits.scatter) || !all_equal(item.splits.gather)) return false;
  }
  return true;
}

void move(Communicator& communicator, const Call& settings, const std::vector<ExchangeItem>& items,
          std::size_t scatter_dim, std::size_t gather_dim) {
  BlockLists<ConstBlock> sent;
  BlockLists<Block> received;
  std::vector<std::int64_t> scattered(items.size());
  std::vector<std::int64_t> gathered(items.size());
  for (const auto peer : c10::irange(static_cast<std::size_t>(communicator.size()))) {
    for (const auto i : c10::irange(items.size())) {
      const auto& [in, out, splits] = items[i];
      const auto scatter_end = scattered[i] + splits.scatter[peer];
      const auto gather_end = gathered[i] + splits.gather[peer];
      append_part(in, scatter_dim, scattered[i], scatter_end, sent.blocks);
      received.blocks.push_back(part_of_result(out, gather_dim, gathered[i], gather_end));
      scattered[i] = scatter_end;
      gathered[i] = gather_end;
    }
    sent.end();
    received.end();
  }
  communicator.all_to_all(sent.lists(), received.lists(), items.front().in.type, is_even(items),
                          settings);
}

}  // namespace

void check_dims(const c10d_::Site& site, const at::Tensor& x, std::int64_t scatter_dim,
                std::int64_t gather_dim) {
  TORCH_CHECK_VALUE(x.dim() == 4, site.prefix(), "x must have 4 dimensions, got shape ", x.sizes());
  TORCH_CHECK_VALUE(scatter_dim >= 0 && scatter_dim < 4 && gather_dim >= 0 && gather_dim < 4,
                    site.prefix(), "scatter_dim and gather_dim must be 0 to 3, got ", scatter_dim,
                    " and ", gather_dim);
  TORCH_CHECK_VALUE(scatter_dim != gather_dim, site.prefix(),
                    "scatter_dim and gather_dim must differ, both are ", gather_dim);
}

std::vector<std::int64_t> result_sizes(const OpCall& call, const at::Tensor& x,
                                       std::size_t scatter_dim, std::size_t gather_dim,
                                       const Splits& splits) {
  auto sizes = x.sizes().vec();
  sizes[scatter_dim] = splits.scatter[call.rank()];
  sizes[gather_dim] = std::reduce(splits.gather.begin(), splits.gather.end());
  return sizes;
}

std::size_t layout_of(at::TensorList xs, std::size_t scatter_dim, std::size_t gather_dim,
                      const std::vector<Splits>& splits) {
  Layout layout;
  layout.add(static_cast<std::int64_t>(scatter_dim)).add(static_cast<std::int64_t>(gather_dim));
  for (const auto i : c10::irange(xs.size())) {
    layout.add(splits[i].scatter).add(splits[i].gather);
    layout.add_others(xs[i].sizes(), {scatter_dim, gather_dim});
  }
  return layout.hash();
}

std::vector<at::Tensor> exchange(const OpCall& call, at::TensorList xs, std::size_t scatter_dim,
                                 std::size_t gather_dim, const std::vector<Splits>& splits) {
  const auto on_gpu = [](const at::Tensor& x) { return x.is_cuda(); };
  if (std::any_of(xs.begin(), xs.end(), on_gpu))
    return exchange_on_gpu(call, xs, scatter_dim, gather_dim, splits);
  std::vector<at::Tensor> ys;
  std::vector<ExchangeItem> items;
  for (const auto i : c10::irange(xs.size())) {
    ys.push_back(empty_as(xs[i], result_sizes(call, xs[i], scatter_dim, gather_dim, splits[i])));
    const int index = xs.size() == 1 ? -1 : static_cast<int>(i);
    items.push_back({view_of_parts(call, xs[i], scatter_dim, splits[i].scatter, "x", index),
                     call.write(ys.back()), splits[i]});
    c10d_::check_same_type(call.site(), items.back().in, "a tensor of the list", items.front().in,
                           "the first one");
  }
  const auto layout = layout_of(xs, scatter_dim, gather_dim, splits);
  call.run(layout, [items = std::move(items), scatter_dim, gather_dim](Communicator& communicator,
                                                                       const Call& settings) {
    move(communicator, settings, items, scatter_dim, gather_dim);
  });
  return ys;
}

at::Tensor exchange_evenly(const OpCall& call, const at::Tensor& x, std::int64_t scatter_dim,
                           std::int64_t gather_dim) {
  const auto ranks = static_cast<std::int64_t>(call.ranks());
  c10::SmallVector<std::int64_t, 4> sizes(x.sizes().begin(), x.sizes().end());
  sizes[scatter_dim] /= ranks;
  sizes[gather_dim] *= ranks;
  auto y = empty_as(x, sizes);

  const auto layout = Layout()
                          .add(scatter_dim)
                          .add(gather_dim)
                          .add_equal(sizes[scatter_dim], ranks)
                          .add_equal(x.size(gather_dim), ranks)
                          .add_others(x.sizes(), {static_cast<std::size_t>(scatter_dim),
                                                  static_cast<std::size_t>(gather_dim)})
                          .hash();
  const auto element = static_cast<std::size_t>(x.element_size());
  const auto scattered = BlockLayout::split(x.sizes(), scatter_dim, element, call.ranks());
  const auto gathered = BlockLayout::split(sizes, gather_dim, element, call.ranks());
  call.run(layout, [in = call.read(x, "x"), out = call.write(y), scattered, gathered](
                       Communicator& communicator, const Call& settings) {
    const auto peers = static_cast<std::size_t>(communicator.size());
    c10::SmallVector<ConstBlock, 8> sent;
    c10::SmallVector<Block, 8> received;
    for (std::size_t peer = 0; peer < peers; ++peer) {
      sent.push_back(scattered.block(static_cast<const void*>(in.data), peer));
      received.push_back(gathered.block(static_cast<void*>(out.data), peer));
    }
    communicator.all_to_all(std::span<const ConstBlock>(sent.data(), peers),
                            std::span<const Block>(received.data(), peers), in.type, true,
                            settings);
  });
  return y;
}

}  // namespace fvd::ops
