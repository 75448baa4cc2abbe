#include "ops/exchange_gpu.h"

#include <ATen/ops/empty.h>
#include <c10/util/irange.h>

#include <numeric>
#include <optional>
#include <span>

#include "comm/error.h"
#include "cuda/kernels.h"
#include "ops/exchange_push.h"
#include "ops/parts.h"

namespace fvd::ops {
namespace {

// As the kernel's widest access, and what NCCL likes.
constexpr std::int64_t kAlignment = 128;

/// One rank's part of a tensor.
struct Part {
  std::byte* data;
  std::vector<std::int64_t> sizes;
  at::IntArrayRef strides;
  std::size_t element_bytes;

  std::int64_t count() const {
    return std::accumulate(sizes.begin(), sizes.end(), std::int64_t{1}, std::multiplies<>());
  }
  std::int64_t bytes() const { return count() * static_cast<std::int64_t>(element_bytes); }
};

Part part_of(const c10d_::TensorView& view, std::size_t dim, std::int64_t begin,
             std::int64_t size) {
  const auto element = static_cast<std::size_t>(view.memory.element_size());
  Part part{view.data, view.memory.sizes().vec(), view.memory.strides(), element};
  part.sizes[dim] = size;
  part.data += begin * part.strides[dim] * static_cast<std::int64_t>(element);
  return part;
}

/// The part as a block of one run for each index of the first `outer` dimensions, if it lies so.
std::optional<Block> as_runs(const Part& part, std::size_t outer, std::int64_t runs) {
  std::int64_t dense = 1;
  for (std::size_t d = part.sizes.size(); d-- > outer;) {
    if (part.sizes[d] != 1 && part.strides[d] != dense) return std::nullopt;
    dense *= part.sizes[d];
  }
  // The outer dimensions must be steps of one stride, that of the last of them that has a step.
  std::int64_t stride = dense;
  std::int64_t expected = -1;
  for (std::size_t d = outer; d-- > 0;) {
    if (part.sizes[d] == 1) continue;
    if (expected < 0) stride = expected = part.strides[d];
    if (part.strides[d] != expected) return std::nullopt;
    expected *= part.sizes[d];
  }
  if (stride < dense) return std::nullopt;
  return Block{part.data, static_cast<std::size_t>(runs),
               static_cast<std::size_t>(dense) * part.element_bytes,
               static_cast<std::size_t>(stride) * part.element_bytes};
}

/// Everything one call does on this rank, worked out before anything is enqueued.
class Moves {
 public:
  Moves(std::size_t ranks, std::size_t rank) : rank_(rank), sent_(ranks), received_(ranks) {}

  /// Of one tensor, for a peer: `from` its part of the input, `to` what comes from it.
  void add(std::size_t peer, const Part& from, const Part& to, std::size_t outer_dims,
           std::int64_t outer) {
    if (peer == rank_) {
      own_.push_back({from, to});
      return;
    }
    const bool by_runs = outer <= kMostMessages;
    const std::size_t dims = by_runs ? outer_dims : 0;
    const std::int64_t runs = by_runs ? outer : 1;
    place(from, dims, runs, sent_[peer], to_pack_);
    place(to, dims, runs, received_[peer], to_unpack_);
  }

  std::int64_t staging_bytes() const { return bytes_; }

  void enqueue(Communicator& communicator, DataType type, const Call& call, std::byte* staging) {
    cuda::CopyPlan before, after;
    for (const auto& [part, offset] : to_pack_) {
      const auto packed = contiguous_strides(part.sizes);
      before.add(
          {part.data, staging + offset, part.sizes, part.strides, packed, part.element_bytes});
    }
    for (const auto& [part, offset] : to_unpack_) {
      const auto packed = contiguous_strides(part.sizes);
      after.add(
          {staging + offset, part.data, part.sizes, packed, part.strides, part.element_bytes});
    }
    // With what comes after, if there is such, so that there is one kernel.
    for (const auto& [from, to] : own_) {
      (after.empty() ? before : after)
          .add({from.data, to.data, to.sizes, from.strides, to.strides, to.element_bytes});
    }
    try {
      cuda::enqueue(before, call.stream);
    } catch (const Error& error) {
      communicator.abort(error.what());  // nobody is to wait for what this rank does not send
      throw;
    }
    const auto sent = lists<ConstBlock>(sent_, staging);
    const auto received = lists<Block>(received_, staging);
    communicator.all_to_all_runs(sent.lists(), received.lists(), type, call);
    cuda::enqueue(after, call.stream);
  }

 private:
  struct Staged {
    Part part;
    std::int64_t offset;
  };
  struct Piece {
    Block block;                       // its data is null if it is staged
    std::int64_t staging_offset = -1;  // then it lies here
  };
  struct Own {
    Part from, to;
  };

  void place(const Part& part, std::size_t outer_dims, std::int64_t runs, std::vector<Piece>& list,
             std::vector<Staged>& staged) {
    const std::int64_t bytes = part.bytes();
    if (bytes == 0) return;  // the other side has as few
    if (auto block = as_runs(part, outer_dims, runs)) {
      list.push_back({*block});
      return;
    }
    const auto run = static_cast<std::size_t>(bytes / runs);
    list.push_back({{nullptr, static_cast<std::size_t>(runs), run, run}, bytes_});
    staged.push_back({part, bytes_});
    bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  template <typename B>
  static BlockLists<B> lists(const std::vector<std::vector<Piece>>& all, std::byte* staging) {
    BlockLists<B> result;
    for (const auto& pieces : all) {
      for (const auto& [block, offset] : pieces) {
        std::byte* data = offset < 0 ? block.data : staging + offset;
        result.blocks.push_back({data, block.runs, block.run_bytes, block.run_stride});
      }
      result.end();
    }
    return result;
  }

  const std::size_t rank_;
  std::vector<std::vector<Piece>> sent_, received_;  // by peer
  std::vector<Staged> to_pack_, to_unpack_;
  std::vector<Own> own_;
  std::int64_t bytes_ = 0;
};

Moves moves_of(const OpCall& call, const std::vector<ExchangeItem>& items, std::size_t scatter_dim,
               std::size_t gather_dim) {
  Moves moves(call.ranks(), call.rank());
  const std::size_t outer_dims = std::min(scatter_dim, gather_dim);
  for (const auto& [in, out, splits] : items) {
    std::int64_t outer = 1;
    for (std::size_t d = 0; d < outer_dims; ++d) outer *= in.memory.size(d);
    std::int64_t scattered = 0, gathered = 0;
    for (const auto peer : c10::irange(call.ranks())) {
      moves.add(peer, part_of(in, scatter_dim, scattered, splits.scatter[peer]),
                part_of(out, gather_dim, gathered, splits.gather[peer]), outer_dims, outer);
      scattered += splits.scatter[peer];
      gathered += splits.gather[peer];
    }
  }
  return moves;
}

}  // namespace

std::vector<at::Tensor> exchange_on_gpu(const OpCall& call, at::TensorList xs,
                                        std::size_t scatter_dim, std::size_t gather_dim,
                                        const std::vector<Splits>& splits) {
  const auto site = call.site();
  const auto none = cuda::why_no_kernels();
  TORCH_CHECK_NOT_IMPLEMENTED(!none.has_value(), site.prefix(), "x is on a GPU, but ", *none);
  std::vector<at::Tensor> ys;
  std::vector<ExchangeItem> items;
  for (const auto i : c10::irange(xs.size())) {
    const int index = xs.size() == 1 ? -1 : static_cast<int>(i);
    auto in = c10d_::view(site, xs[i], c10d_::Access::kReadStrided, "x", index);
    ys.push_back(empty_as(xs[i], result_sizes(call, xs[i], scatter_dim, gather_dim, splits[i])));
    items.push_back({std::move(in), call.write(ys.back()), splits[i]});
    c10d_::check_same_type(site, items.back().in, "a tensor of the list", items.front().in,
                           "the first one");
  }
  call.run(layout_of(xs, scatter_dim, gather_dim, splits), [&](Communicator& communicator,
                                                               const Call& settings) {
    const auto why_not = exchange_by_push(communicator, settings, items, scatter_dim, gather_dim);
    call.note_exchange(why_not ? "nccl: " + *why_not : "push");
    if (!why_not) return;
    Moves moves = moves_of(call, items, scatter_dim, gather_dim);
    at::Tensor staging;
    try {  // The stream of the call is the current one here as well.
      staging =
          at::empty({moves.staging_bytes()}, xs[0].options().dtype(at::kByte).requires_grad(false));
    } catch (const std::exception& error) {
      if (communicator.may_push()) communicator.abort(error.what());  // the others go on to NCCL
      throw;
    }
    moves.enqueue(communicator, items.front().in.type, settings,
                  static_cast<std::byte*>(staging.mutable_data_ptr()));
  });
  return ys;
}

}  // namespace fvd::ops
