// Copies: broadcast, all_gather, gather, scatter.
#include <c10/util/irange.h>

#include <utility>

#include "c10d/backend.h"

namespace fvd::c10d_ {
namespace {

template <typename Range>
std::vector<Block> blocks_of(const Range& views) {
  std::vector<Block> blocks;
  blocks.reserve(views.size());
  for (const auto& one : views) blocks.push_back(one.block());
  return blocks;
}

template <typename Range>
std::vector<ConstBlock> const_blocks_of(const Range& views) {
  std::vector<ConstBlock> blocks;
  blocks.reserve(views.size());
  for (const auto& one : views) blocks.push_back(one.const_block());
  return blocks;
}

/// The one list of a nested list that c10d hands over, with one tensor per rank.
const std::vector<at::Tensor>& per_rank(const Site& site,
                                        const std::vector<std::vector<at::Tensor>>& lists, int size,
                                        const char* what) {
  TORCH_CHECK_VALUE(lists.size() == 1 && lists.front().size() == static_cast<std::size_t>(size),
                    site.prefix(), "expected a list of ", size, " ", what, ", one per rank, got ",
                    lists.empty() ? 0 : lists.front().size());
  return lists.front();
}

void check_equal_sizes(const Site& site, const std::vector<TensorView>& list, const char* list_name,
                       const TensorView& one, const char* one_name) {
  for (const auto i : c10::irange(list.size())) {
    check_same_type(site, list[i], list_name, one, one_name);
    TORCH_CHECK_VALUE(list[i].bytes == one.bytes, site.prefix(), list_name, "[", i, "] has ",
                      list[i].count(), " elements but ", one_name, " has ", one.count());
  }
}

/// One input per rank, all of them side by side in one output.
struct GatherPair {
  TensorView input;
  TensorView output;

  GatherPair(const Site& site, const at::Tensor& in, const at::Tensor& out, int rank, int ranks)
      : input(view(site, in, Access::kRead, "input")),
        output(view(site, out, Access::kWrite, "output")) {
    check_same_type(site, input, "input", output, "output");
    TORCH_CHECK_VALUE(out.numel() == in.numel() * ranks, site.prefix(), "input has shape ",
                      in.sizes(), " and output ", out.sizes(), "; the output must have ", ranks,
                      " times as many elements as the input, once per rank");
    // The input may be this rank's part of the output; any other overlap needs a copy.
    if (output.data + rank * input.bytes != input.data) separate(input, output, false);
  }

  void run(Communicator& communicator, const Call& call) const {
    c10::SmallVector<Block, 16> parts;
    for (const auto peer : c10::irange(communicator.size()))
      parts.push_back(
          contiguous_block(static_cast<void*>(output.data + peer * input.bytes), input.bytes));
    communicator.all_gather(input.const_block(), {parts.data(), parts.size()}, input.type, call);
    output.copy_back();
  }
};

}  // namespace

WorkPtr FastVideoBackend::broadcast(Tensors& tensors, const ::c10d::BroadcastOptions& opts) {
  const auto request = this->request("broadcast", ::c10d::OpType::BROADCAST, "fastvideo:broadcast",
                                     opts.timeout, opts.asyncOp);
  const int root = checked_root(request.site, opts.rootRank);
  auto data = view(request.site, only(request.site, tensors, "tensor"),
                   root == rank_ ? Access::kRead : Access::kWrite, "tensor");
  return submit(request, tensors,
                [data = std::move(data), root](Communicator& communicator, const Call& call) {
                  communicator.broadcast(data.block(), data.type, root, call);
                  data.copy_back();
                });
}

WorkPtr FastVideoBackend::allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                                    const ::c10d::AllgatherOptions& opts) {
  const auto request = this->request("all_gather", ::c10d::OpType::ALLGATHER,
                                     "fastvideo:all_gather", opts.timeout, opts.asyncOp);
  const auto& site = request.site;
  auto input = view(site, only(site, inputs, "input"), Access::kRead, "input");
  auto parts = views(site, per_rank(site, outputs, size_, "outputs"), Access::kWrite, "outputs");
  check_disjoint(site, parts, "outputs");
  bool even = true;
  for (const auto& part : parts) {
    check_same_type(site, part, "an output", input, "input");
    even = even && part.bytes == parts.front().bytes;
  }
  TORCH_CHECK_VALUE(parts[rank_].bytes == input.bytes, site.prefix(), "input has ", input.count(),
                    " elements but outputs[", rank_, "], where it goes, ", parts[rank_].count());
  for (const auto& part : parts) separate(input, part, even && &part == &parts[rank_]);
  return submit(request, outputs.front(),
                [input = std::move(input), parts = std::move(parts), even](
                    Communicator& communicator, const Call& call) {
                  const auto blocks = blocks_of(parts);
                  if (even) {
                    communicator.all_gather(input.const_block(), blocks, input.type, call);
                  } else {
                    const std::vector<ConstBlock> same(blocks.size(), input.const_block());
                    communicator.all_to_all(same, blocks, input.type, false, call);
                  }
                  for (const auto& part : parts) part.copy_back();
                });
}

WorkPtr FastVideoBackend::_allgather_base(at::Tensor& output, at::Tensor& input,
                                          const ::c10d::AllgatherOptions& opts) {
  const auto request =
      this->request("all_gather_into_tensor", ::c10d::OpType::_ALLGATHER_BASE,
                    "fastvideo:all_gather_into_tensor", opts.timeout, opts.asyncOp);
  return submit(
      request, {output},
      [pair = GatherPair(request.site, input, output, rank_, size_)](
          Communicator& communicator, const Call& call) { pair.run(communicator, call); });
}

WorkPtr FastVideoBackend::allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                                          const ::c10d::AllgatherOptions& opts) {
  const auto request =
      this->request("all_gather_into_tensor_coalesced", ::c10d::OpType::COALESCED,
                    "fastvideo:all_gather_into_tensor_coalesced", opts.timeout, opts.asyncOp);
  TORCH_CHECK_VALUE(outputs.size() == inputs.size(), request.site.prefix(), "got ", inputs.size(),
                    " inputs but ", outputs.size(), " outputs");
  std::vector<GatherPair> pairs;
  for (const auto i : c10::irange(inputs.size()))
    pairs.emplace_back(request.site, inputs[i], outputs[i], rank_, size_);
  return submit(request, outputs,
                [pairs = std::move(pairs)](Communicator& communicator, const Call& call) {
                  for (const auto& pair : pairs) pair.run(communicator, call);
                });
}

WorkPtr FastVideoBackend::gather(std::vector<Tensors>& outputs, Tensors& inputs,
                                 const ::c10d::GatherOptions& opts) {
  const auto request = this->request("gather", ::c10d::OpType::GATHER, "fastvideo:gather",
                                     opts.timeout, opts.asyncOp);
  const auto& site = request.site;
  const int root = checked_root(site, opts.rootRank);
  auto input = view(site, only(site, inputs, "input"), Access::kRead, "input");
  Tensors results;
  std::vector<TensorView> parts;
  if (root == rank_) {
    results = per_rank(site, outputs, size_, "outputs");
    parts = views(site, results, Access::kWrite, "outputs");
    check_disjoint(site, parts, "outputs");
    check_equal_sizes(site, parts, "outputs", input, "input");
    for (const auto& part : parts) separate(input, part, false);
  } else {
    TORCH_CHECK_VALUE(outputs.empty() || outputs.front().empty(), site.prefix(),
                      "outputs belong to the root, rank ", root, " of the group, only");
  }
  return submit(request, std::move(results),
                [input = std::move(input), parts = std::move(parts), root](
                    Communicator& communicator, const Call& call) {
                  communicator.gather(input.const_block(), blocks_of(parts), input.type, root,
                                      call);
                  for (const auto& part : parts) part.copy_back();
                });
}

WorkPtr FastVideoBackend::scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                  const ::c10d::ScatterOptions& opts) {
  const auto request = this->request("scatter", ::c10d::OpType::SCATTER, "fastvideo:scatter",
                                     opts.timeout, opts.asyncOp);
  const auto& site = request.site;
  const int root = checked_root(site, opts.rootRank);
  auto output = view(site, only(site, outputs, "output"), Access::kWrite, "output");
  std::vector<TensorView> parts;
  if (root == rank_) {
    parts = views(site, per_rank(site, inputs, size_, "inputs"), Access::kRead, "inputs");
    check_equal_sizes(site, parts, "inputs", output, "output");
    for (auto& part : parts) separate(part, output, false);
  } else {
    TORCH_CHECK_VALUE(inputs.empty() || inputs.front().empty(), site.prefix(),
                      "inputs belong to the root, rank ", root, " of the group, only");
  }
  return submit(request, outputs,
                [output = std::move(output), parts = std::move(parts), root](
                    Communicator& communicator, const Call& call) {
                  communicator.scatter(const_blocks_of(parts), output.block(), output.type, root,
                                       call);
                  output.copy_back();
                });
}

}  // namespace fvd::c10d_
