// Reductions: all_reduce, reduce, reduce_scatter.
#include <c10/util/irange.h>

#include <utility>

#include "c10d/backend.h"

namespace fvd::c10d_ {
namespace {

using RedOpType = ::c10d::ReduceOp::RedOpType;

double premul_factor(const Site& site, const ::c10d::ReduceOp& op) {
  const auto* supplement =
      dynamic_cast<const ::c10d::NCCLPreMulSumSupplement*>(op.supplement_.get());
  TORCH_CHECK_VALUE(supplement != nullptr, site.prefix(),
                    "PREMUL_SUM needs its factor: make it with _make_nccl_premul_sum(factor)");
  return supplement->tensor_factor.defined() ? supplement->tensor_factor.item<double>()
                                             : supplement->double_factor;
}

ReduceOp reduce_op(const Site& site, const ::c10d::ReduceOp& op) {
  switch (op.op_) {
    case RedOpType::SUM:
      return {ReduceKind::kSum};
    case RedOpType::AVG:
      return {ReduceKind::kAvg};
    case RedOpType::PRODUCT:
      return {ReduceKind::kProduct};
    case RedOpType::MIN:
      return {ReduceKind::kMin};
    case RedOpType::MAX:
      return {ReduceKind::kMax};
    case RedOpType::BAND:
      return {ReduceKind::kBitAnd};
    case RedOpType::BOR:
      return {ReduceKind::kBitOr};
    case RedOpType::BXOR:
      return {ReduceKind::kBitXor};
    case RedOpType::PREMUL_SUM:
      return {ReduceKind::kPremulSum, premul_factor(site, op)};
    case RedOpType::UNUSED:
      break;
  }
  TORCH_CHECK_VALUE(false, site.prefix(), "unknown reduce op ", static_cast<int>(op.op_));
}

/// One input in `ranks` equal parts, one part out: what _reduce_scatter_base and its list form do.
struct ScatterPair {
  TensorView input;
  TensorView output;

  ScatterPair(const Site& site, const at::Tensor& in, const at::Tensor& out, int rank, int ranks)
      : input(view(site, in, Access::kRead, "input")),
        output(view(site, out, Access::kWrite, "output")) {
    check_same_type(site, input, "input", output, "output");
    TORCH_CHECK_VALUE(in.numel() == out.numel() * ranks, site.prefix(), "input has shape ",
                      in.sizes(), " and output ", out.sizes(), "; the input must have ", ranks,
                      " times as many elements as the output, once per rank");
    // The output may be this rank's part of the input; any other overlap needs a copy.
    if (input.data + rank * output.bytes != output.data) separate(input, output, false);
  }

  void run(Communicator& communicator, ReduceOp op, const Call& call) const {
    c10::SmallVector<ConstBlock, 16> parts;
    for (const auto peer : c10::irange(communicator.size()))
      parts.push_back(contiguous_block(static_cast<const void*>(input.data + peer * output.bytes),
                                       output.bytes));
    communicator.reduce_scatter({parts.data(), parts.size()}, output.data, output.type, op, call);
    output.copy_back();
  }
};

}  // namespace

WorkPtr FastVideoBackend::allreduce(Tensors& tensors, const ::c10d::AllreduceOptions& opts) {
  const auto request = this->request("all_reduce", ::c10d::OpType::ALLREDUCE,
                                     "fastvideo:all_reduce", opts.timeout, opts.asyncOp);
  TORCH_CHECK_NOT_IMPLEMENTED(!opts.sparseIndices.has_value(), request.site.prefix(),
                              "sparse tensors are not supported; use to_dense()");
  const auto op = reduce_op(request.site, opts.reduceOp);
  auto data =
      view(request.site, only(request.site, tensors, "tensor"), Access::kReadWrite, "tensor");
  return submit(request, tensors,
                [data = std::move(data), op](Communicator& communicator, const Call& call) {
                  communicator.all_reduce(data.data, data.data, data.count(), data.type, op, call);
                  data.copy_back();
                });
}

WorkPtr FastVideoBackend::allreduce_coalesced(Tensors& tensors,
                                              const ::c10d::AllreduceCoalescedOptions& opts) {
  const auto request = this->request("all_reduce_coalesced", ::c10d::OpType::ALLREDUCE_COALESCED,
                                     "fastvideo:all_reduce_coalesced", opts.timeout, opts.asyncOp);
  const auto op = reduce_op(request.site, opts.reduceOp);
  auto all = views(request.site, tensors, Access::kReadWrite, "tensors");
  check_disjoint(request.site, all, "tensors");
  return submit(request, tensors,
                [all = std::move(all), op](Communicator& communicator, const Call& call) {
                  for (const auto& one : all)
                    communicator.all_reduce(one.data, one.data, one.count(), one.type, op, call);
                  for (const auto& one : all) one.copy_back();
                });
}

WorkPtr FastVideoBackend::reduce(Tensors& tensors, const ::c10d::ReduceOptions& opts) {
  const auto request = this->request("reduce", ::c10d::OpType::REDUCE, "fastvideo:reduce",
                                     opts.timeout, opts.asyncOp);
  const auto op = reduce_op(request.site, opts.reduceOp);
  const int root = checked_root(request.site, opts.rootRank);
  const bool here = root == rank_;
  auto data = view(request.site, only(request.site, tensors, "tensor"),
                   here ? Access::kReadWrite : Access::kRead, "tensor");
  return submit(
      request, tensors,
      [data = std::move(data), op, root, here](Communicator& communicator, const Call& call) {
        communicator.reduce(data.data, here ? data.data : nullptr, data.count(), data.type, op,
                            root, call);
        data.copy_back();
      });
}

WorkPtr FastVideoBackend::reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                                         const ::c10d::ReduceScatterOptions& opts) {
  const auto request = this->request("reduce_scatter", ::c10d::OpType::REDUCE_SCATTER,
                                     "fastvideo:reduce_scatter", opts.timeout, opts.asyncOp);
  const auto& site = request.site;
  const auto op = reduce_op(site, opts.reduceOp);
  auto output = view(site, only(site, outputs, "output"), Access::kWrite, "output");
  TORCH_CHECK_VALUE(inputs.size() == 1 && inputs.front().size() == static_cast<std::size_t>(size_),
                    site.prefix(), "expected a list of ", size_, " inputs, one per rank, got ",
                    inputs.empty() ? 0 : inputs.front().size());
  auto parts = views(site, inputs.front(), Access::kRead, "inputs");
  bool even = true;
  for (auto& part : parts) {
    check_same_type(site, part, "an input", output, "output");
    even = even && part.bytes == parts.front().bytes;
    separate(part, output, even && &part == &parts[rank_]);
  }
  TORCH_CHECK_VALUE(parts[rank_].bytes == output.bytes, site.prefix(), "output has ",
                    output.count(), " elements but inputs[", rank_, "], which is reduced to it, ",
                    parts[rank_].count());
  return submit(request, outputs,
                [parts = std::move(parts), output = std::move(output), op, even, rank = rank_](
                    Communicator& communicator, const Call& call) {
                  if (even) {
                    std::vector<ConstBlock> blocks;
                    for (const auto& part : parts) blocks.push_back(part.const_block());
                    communicator.reduce_scatter(blocks, output.data, output.type, op, call);
                  } else {
                    for (const auto root : c10::irange(communicator.size()))
                      communicator.reduce(parts[root].data, root == rank ? output.data : nullptr,
                                          parts[root].count(), output.type, op, root, call);
                  }
                  output.copy_back();
                });
}

WorkPtr FastVideoBackend::_reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                                               const ::c10d::ReduceScatterOptions& opts) {
  const auto request = this->request("reduce_scatter_tensor", ::c10d::OpType::_REDUCE_SCATTER_BASE,
                                     "fastvideo:reduce_scatter_tensor", opts.timeout, opts.asyncOp);
  const auto op = reduce_op(request.site, opts.reduceOp);
  return submit(
      request, {output},
      [pair = ScatterPair(request.site, input, output, rank_, size_), op](
          Communicator& communicator, const Call& call) { pair.run(communicator, op, call); });
}

WorkPtr FastVideoBackend::reduce_scatter_tensor_coalesced(
    Tensors& outputs, Tensors& inputs, const ::c10d::ReduceScatterOptions& opts) {
  const auto request =
      this->request("reduce_scatter_tensor_coalesced", ::c10d::OpType::COALESCED,
                    "fastvideo:reduce_scatter_tensor_coalesced", opts.timeout, opts.asyncOp);
  const auto op = reduce_op(request.site, opts.reduceOp);
  TORCH_CHECK_VALUE(outputs.size() == inputs.size(), request.site.prefix(), "got ", inputs.size(),
                    " inputs but ", outputs.size(), " outputs");
  std::vector<ScatterPair> pairs;
  for (const auto i : c10::irange(inputs.size()))
    pairs.emplace_back(request.site, inputs[i], outputs[i], rank_, size_);
  return submit(request, outputs,
                [pairs = std::move(pairs), op](Communicator& communicator, const Call& call) {
                  for (const auto& pair : pairs) pair.run(communicator, op, call);
                });
}

}  // namespace fvd::c10d_
