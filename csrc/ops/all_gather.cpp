// What ranks hold side by side along a dimension, joined and summed apart: all_gather and
// reduce_scatter, each the other's gradient, and shard, which moves nothing but whose gradient
// does.
#include <ATen/ops/cat.h>
#include <ATen/ops/div.h>
#include <c10/util/accumulate.h>
#include <torch/library.h>

#include <algorithm>
#include <numeric>

#include "comm/block_layout.h"
#include "ops/differentiable.h"
#include "ops/maybe_sizes.h"
#include "ops/op_call.h"
#include "ops/parts.h"

namespace fvd::ops {
namespace {

using Sizes = std::vector<std::int64_t>;

/// How many elements have the same index along `dim`.
std::int64_t elements_beside(const at::Tensor& x, std::size_t dim) {
  std::int64_t count = 1;
  for (std::size_t d = 0; d < static_cast<std::size_t>(x.dim()); ++d)
    if (d != dim) count *= x.sizes()[d];
  return count;
}

/// Whether a range of indices along `dim` is one piece of a contiguous tensor of this shape.
bool leads(const at::Tensor& x, std::size_t dim) {
  const auto before = x.sizes().slice(0, dim);
  return std::all_of(before.begin(), before.end(), [](std::int64_t size) { return size == 1; });
}

/// The parts of all ranks, which lie one after the other in `flat`, side by side along `dim`.
at::Tensor joined(const at::Tensor& flat, at::IntArrayRef shape, std::size_t dim,
                  const Sizes& parts) {
  std::vector<at::Tensor> pieces;
  std::int64_t begin = 0;
  for (const std::int64_t size : parts) {
    auto sizes = shape.vec();
    sizes[dim] = size;
    const auto count = c10::multiply_integers(sizes);
    pieces.push_back(flat.narrow(0, begin, count).view(sizes));
    begin += count;
  }
  return at::cat(pieces, static_cast<std::int64_t>(dim));
}

at::Tensor all_gather(const at::Tensor& x, std::int64_t dim_argument, at::OptionalIntArrayRef sizes,
                      std::string_view group_name, std::int64_t group_size,
                      std::int64_t group_rank) {
  const OpCall call("all_gather", group_name, group_size, group_rank);
  const auto dim = checked_dim(call.site(), x, dim_argument);
  const auto own = x.size(dim_argument);
  Sizes parts(call.ranks(), own);
  if (sizes.has_value()) {
    parts = sizes_of_ranks(call.site(), sizes, std::reduce(sizes->begin(), sizes->end()),
                           group_size, "sizes");
    TORCH_CHECK_VALUE(parts[call.rank()] == own, call.site().prefix(), "sizes ", *sizes, " say ",
                      parts[call.rank()], " for rank ", call.rank(), " but x has shape ", x.sizes(),
                      ", ", own, " along dim ", dim);
  }
  auto y_sizes = x.sizes().vec();
  y_sizes[dim] = std::reduce(parts.begin(), parts.end());
  // NCCL wants the part of each rank in one piece; where it is not in the result, one copy joins
  // the parts afterwards.
  const bool apart = x.is_cuda() && !leads(x, dim);
  auto y = empty_as(x, apart ? Sizes{elements_beside(x, dim) * y_sizes[dim]} : y_sizes);

  const bool even = all_equal(parts);
  auto in = x.is_cuda() ? call.read(x, "x") : view_of_parts(call, x, dim, {own}, "x");
  std::vector<ConstBlock> blocks;
  append_part(in, dim, 0, own, blocks);
  // Which call it is must not depend on one rank's strides.
  if (even && blocks.size() != 1) {
    in = call.read(x, "x");
    blocks = {in.const_block()};
  }
  const auto layout = Layout().add(dim_argument).add(parts).add_others(x.sizes(), {dim}).hash();
  call.run(layout, [in = std::move(in), out = call.write(y), blocks = std::move(blocks), dim, even,
                    apart, parts](Communicator& communicator, const Call& settings) {
    std::vector<Block> received;
    std::int64_t begin = 0;
    const auto each = apart ? elements_beside(in.memory, dim) : 1;
    for (const std::int64_t size : parts) {
      received.push_back(part_of_result(out, apart ? 0 : dim, begin, begin + size * each));
      begin += size * each;
    }
    if (even) return communicator.all_gather(blocks[0], received, in.type, settings);
    const std::vector<ConstBlocks> sent(parts.size(), blocks);
    std::vector<Blocks> targets;
    for (const Block& block : received) targets.emplace_back(&block, 1);
    communicator.all_to_all(sent, targets, in.type, false, settings);
  });
  return apart ? joined(y, x.sizes(), dim, parts) : y;
}

at::Tensor reduce_scatter(const at::Tensor& x, std::int64_t dim_argument, std::string_view op,
                          at::OptionalIntArrayRef sizes, std::string_view group_name,
                          std::int64_t group_size, std::int64_t group_rank) {
  const OpCall call("reduce_scatter", group_name, group_size, group_rank);
  const ReduceOp reduction{reduce_kind(call.site(), op)};
  const auto dim = checked_dim(call.site(), x, dim_argument);
  const auto parts = sizes_of_ranks(call.site(), sizes, x.size(dim_argument), group_size, "sizes");
  auto y_sizes = x.sizes().vec();
  y_sizes[dim] = parts[call.rank()];
  auto y = empty_as(x, y_sizes);

  const auto layout = Layout().add(dim_argument).add(parts).add(x.sizes()).hash();
  if (all_equal(parts)) {
    // As in all_gather: for NCCL one copy takes the parts apart before.
    const bool apart = x.is_cuda() && !leads(x, dim);
    const auto source =
        apart ? x.unflatten(dim_argument, {group_size, parts[0]}).movedim(dim_argument, 0) : x;
    call.run(layout, [in = call.read(source, "x"), out = call.write(y), dim = apart ? 0 : dim,
                      reduction](Communicator& communicator, const Call& settings) {
      const auto ranks = static_cast<std::size_t>(communicator.size());
      const auto layout = BlockLayout::split(in.memory.sizes(), dim, element_size(in.type), ranks);
      std::vector<ConstBlock> blocks;
      for (std::size_t peer = 0; peer < ranks; ++peer)
        blocks.push_back(layout.block(static_cast<const void*>(in.data), peer));
      communicator.reduce_scatter(blocks, out.data, in.type, reduction, settings);
    });
    return y;
  }
  // Unequal parts are reduced one after the other, each to its rank.
  std::vector<c10d_::TensorView> pieces;
  std::int64_t begin = 0;
  for (const std::int64_t size : parts) {
    pieces.push_back(call.read(x.narrow(dim_argument, begin, size), "x"));
    begin += size;
  }
  call.run(layout, [pieces = std::move(pieces), out = call.write(y), rank = call.rank(), reduction](
                       Communicator& communicator, const Call& settings) {
    for (std::size_t root = 0; root < pieces.size(); ++root) {
      communicator.reduce(pieces[root].data, root == rank ? out.data : nullptr,
                          pieces[root].count(), out.type, reduction, static_cast<int>(root),
                          settings);
    }
  });
  return y;
}

at::Tensor shard(const at::Tensor& x, std::int64_t dim_argument, at::OptionalIntArrayRef sizes,
                 bool /*scale_grad*/, std::string_view group_name, std::int64_t group_size,
                 std::int64_t group_rank) {
  const std::string group(group_name);
  const c10d_::Site site{"shard", group, static_cast<int>(group_rank)};
  TORCH_CHECK_VALUE(group_rank >= 0 && group_rank < group_size, site.prefix(), "group_rank is ",
                    group_rank, " but the group has ranks 0 to ", group_size - 1);
  checked_dim(site, x, dim_argument);
  const auto parts = sizes_of_ranks(site, sizes, x.size(dim_argument), group_size, "sizes");
  const auto begin = std::reduce(parts.begin(), parts.begin() + group_rank);
  const auto part = x.narrow(dim_argument, begin, parts[static_cast<std::size_t>(group_rank)]);
  return part.clone(at::MemoryFormat::Contiguous);
}

// ---- gradients ---------------------------------------------------------------------------------

/// Where the parts lie and whose they are: what the three ops have in common.
struct Parts {
  std::int64_t dim;
  MaybeSizes sizes;
  std::string group;
  std::int64_t size;
  std::int64_t rank;

  void save(Saved& saved) const {
    saved["dim"] = dim;
    save_sizes(saved, "sizes", sizes);
    saved["group"] = group;
    saved["size"] = size;
    saved["rank"] = rank;
  }
  static Parts load(const Saved& saved) {
    return {saved.at("dim").toInt(), load_sizes(saved, "sizes"), saved.at("group").toStringRef(),
            saved.at("size").toInt(), saved.at("rank").toInt()};
  }

  at::Tensor gathered(const at::Tensor& x) const {
    static const auto op =
        find_op<at::Tensor(const at::Tensor&, std::int64_t, at::OptionalSymIntArrayRef,
                           std::string_view, std::int64_t, std::int64_t)>(
            "fastvideo_dist::all_gather");
    return op.call(x, dim, ref(sizes), group, size, rank);
  }
  at::Tensor scattered(const at::Tensor& x, std::string_view reduction) const {
    static const auto op = find_op<at::Tensor(
        const at::Tensor&, std::int64_t, std::string_view, at::OptionalSymIntArrayRef,
        std::string_view, std::int64_t, std::int64_t)>("fastvideo_dist::reduce_scatter");
    return op.call(x, dim, reduction, ref(sizes), group, size, rank);
  }
  at::Tensor sharded(const at::Tensor& x, bool scale_grad) const {
    static const auto op =
        find_op<at::Tensor(const at::Tensor&, std::int64_t, at::OptionalSymIntArrayRef, bool,
                           std::string_view, std::int64_t, std::int64_t)>("fastvideo_dist::shard");
    return op.call(x, dim, ref(sizes), scale_grad, group, size, rank);
  }
};

struct AllGatherCall {
  Parts parts;

  at::Tensor operator()(const at::Tensor& x) const { return parts.gathered(x); }
  at::Tensor gradient(const at::Tensor& dy) const { return parts.scattered(dy, "sum"); }
  void save(Saved& saved) const { parts.save(saved); }
  static AllGatherCall load(const Saved& saved) { return {Parts::load(saved)}; }
};

struct ReduceScatterCall {
  Parts parts;
  std::string op;

  at::Tensor operator()(const at::Tensor& x) const { return parts.scattered(x, op); }
  void check_linear() const { check_linear_reduction("reduce_scatter", parts.group, op); }
  at::Tensor gradient(const at::Tensor& dy) const {
    const auto dx = parts.gathered(dy);
    return op == "avg" ? dx.div(parts.size) : dx;
  }
  void save(Saved& saved) const {
    parts.save(saved);
    saved["op"] = op;
  }
  static ReduceScatterCall load(const Saved& saved) {
    return {Parts::load(saved), saved.at("op").toStringRef()};
  }
};

struct ShardCall {
  Parts parts;
  bool scale_grad;

  at::Tensor operator()(const at::Tensor& x) const { return parts.sharded(x, scale_grad); }
  at::Tensor gradient(const at::Tensor& dy) const {
    const auto dx = parts.gathered(dy);
    return scale_grad ? dx.div(parts.size) : dx;
  }
  void save(Saved& saved) const {
    parts.save(saved);
    saved["scale_grad"] = scale_grad;
  }
  static ShardCall load(const Saved& saved) {
    return {Parts::load(saved), saved.at("scale_grad").toBool()};
  }
};

at::Tensor all_gather_autograd(const at::Tensor& x, std::int64_t dim,
                               at::OptionalSymIntArrayRef sizes, std::string_view group_name,
                               std::int64_t group_size, std::int64_t group_rank) {
  return differentiable(
      x, AllGatherCall{{dim, copy_of(sizes), std::string(group_name), group_size, group_rank}});
}

at::Tensor reduce_scatter_autograd(const at::Tensor& x, std::int64_t dim, std::string_view op,
                                   at::OptionalSymIntArrayRef sizes, std::string_view group_name,
                                   std::int64_t group_size, std::int64_t group_rank) {
  return differentiable(
      x, ReduceScatterCall{{dim, copy_of(sizes), std::string(group_name), group_size, group_rank},
                           std::string(op)});
}

at::Tensor shard_autograd(const at::Tensor& x, std::int64_t dim, at::OptionalSymIntArrayRef sizes,
                          bool scale_grad, std::string_view group_name, std::int64_t group_size,
                          std::int64_t group_rank) {
  return differentiable(
      x, ShardCall{{dim, copy_of(sizes), std::string(group_name), group_size, group_rank},
                   scale_grad});
}

}  // namespace

TORCH_LIBRARY_IMPL(fastvideo_dist, CPU, library) {
  library.impl("all_gather", all_gather);
  library.impl("reduce_scatter", reduce_scatter);
}

TORCH_LIBRARY_IMPL(fastvideo_dist, CUDA, library) {
  library.impl("all_gather", all_gather);
  library.impl("reduce_scatter", reduce_scatter);
}

TORCH_LIBRARY_IMPL(fastvideo_dist, CompositeExplicitAutograd, library) {
  library.impl("shard", shard);
}

TORCH_LIBRARY_IMPL(fastvideo_dist, Autograd, library) {
  library.impl("all_gather", all_gather_autograd);
  library.impl("reduce_scatter", reduce_scatter_autograd);
  library.impl("shard", shard_autograd);
}

}  // namespace fvd::ops
