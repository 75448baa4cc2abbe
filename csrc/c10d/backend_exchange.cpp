// Exchanges and barriers: all_to_all, barrier.
#include <c10/util/irange.h>

#include <utility>

#include "c10d/backend.h"
#include "c10d/translate_errors.h"

namespace fvd::c10d_ {
namespace {

/// Bytes of the rows (dimension 0) that go to or come from each rank.
std::vector<std::size_t> part_bytes(const Site& site, const at::Tensor& tensor,
                                    const std::vector<int64_t>& splits, int ranks,
                                    const char* what) {
  TORCH_CHECK_VALUE(tensor.dim() > 0, site.prefix(), what,
                    " has no dimension to split; give it one with unsqueeze(0)");
  const int64_t rows = tensor.size(0);
  std::size_t row_bytes = tensor.element_size();
  for (const auto size : tensor.sizes().slice(1)) row_bytes *= static_cast<std::size_t>(size);
  if (splits.empty()) {
    TORCH_CHECK_VALUE(rows % ranks == 0, site.prefix(), what, " has ", rows,
                      " rows in dimension 0, which ", ranks,
                      " ranks cannot share evenly; give split sizes");
    return std::vector<std::size_t>(ranks, rows / ranks * row_bytes);
  }
  TORCH_CHECK_VALUE(splits.size() == static_cast<std::size_t>(ranks), site.prefix(), what, " has ",
                    splits.size(), " split sizes for ", ranks, " ranks");
  std::vector<std::size_t> bytes;
  int64_t sum = 0;
  for (const auto i : c10::irange(splits.size())) {
    // No split may exceed what is left: the sum cannot overflow.
    TORCH_CHECK_VALUE(splits[i] >= 0 && splits[i] <= rows - sum, site.prefix(), what,
                      " split sizes ", at::IntArrayRef(splits), " do not divide its ", rows,
                      " rows in dimension 0: number ", i, " is negative or too large");
    sum += splits[i];
    bytes.push_back(static_cast<std::size_t>(splits[i]) * row_bytes);
  }
  TORCH_CHECK_VALUE(sum == rows, site.prefix(), what, " split sizes ", at::IntArrayRef(splits),
                    " add up to ", sum, " but dimension 0 has ", rows, " rows");
  return bytes;
}

}  // namespace

WorkPtr FastVideoBackend::alltoall_base(at::Tensor& output, at::Tensor& input,
                                        std::vector<int64_t>& output_splits,
                                        std::vector<int64_t>& input_splits,
                                        const ::c10d::AllToAllOptions& opts) {
  const auto request = this->request("all_to_all_single", ::c10d::OpType::ALLTOALL_BASE,
                                     "fastvideo:all_to_all_single", opts.timeout, opts.asyncOp);
  const auto& site = request.site;
  auto in = view(site, input, Access::kRead, "input");
  auto out = view(site, output, Access::kWrite, "output");
  check_same_type(site, in, "input", out, "output");
  const bool even = output_splits.empty() && input_splits.empty();
  const auto in_bytes = part_bytes(site, input, input_splits, size_, "input");
  const auto out_bytes = part_bytes(site, output, output_splits, size_, "output");
  TORCH_CHECK_VALUE(!even || in.bytes == out.bytes, site.prefix(), "input has shape ",
                    input.sizes(), " and output ", output.sizes(),
                    "; without split sizes they must have equally many elements");
  TORCH_CHECK_VALUE(in_bytes[rank_] == out_bytes[rank_], site.prefix(), "rank ", rank_,
                    " sends itself ", in_bytes[rank_], " bytes but expects ", out_bytes[rank_]);
  separate(in, out, false);
  return submit(request, {output},
                [in = std::move(in), out = std::move(out), in_bytes, out_bytes, even](
                    Communicator& communicator, const Call& call) {
                  c10::SmallVector<ConstBlock, 16> sent;
                  c10::SmallVector<Block, 16> received;
                  const std::byte* from = in.data;
                  std::byte* to = out.data;
                  for (const auto peer : c10::irange(in_bytes.size())) {
                    sent.push_back({from, 1, in_bytes[peer], in_bytes[peer]});
                    received.push_back({to, 1, out_bytes[peer], out_bytes[peer]});
                    from += in_bytes[peer];
                    to += out_bytes[peer];
                  }
                  communicator.all_to_all({sent.data(), sent.size()},
                                          {received.data(), received.size()}, in.type, even, call);
                  out.copy_back();
                });
}

WorkPtr FastVideoBackend::alltoall(Tensors& outputs, Tensors& inputs,
                                   const ::c10d::AllToAllOptions& opts) {
  const auto request = this->request("all_to_all", ::c10d::OpType::ALLTOALL, "fastvideo:all_to_all",
                                     opts.timeout, opts.asyncOp);
  const auto& site = request.site;
  const auto ranks = static_cast<std::size_t>(size_);
  TORCH_CHECK_VALUE(inputs.size() == ranks && outputs.size() == ranks, site.prefix(), "expected ",
                    ranks, " inputs and outputs, one per rank, got ", inputs.size(), " and ",
                    outputs.size());
  auto in = views(site, inputs, Access::kRead, "inputs");
  auto out = views(site, outputs, Access::kWrite, "outputs");
  check_disjoint(site, out, "outputs");
  for (auto& one : in) {
    check_same_type(site, one, "an input", out.front(), "outputs[0]");
    for (const auto& other : out) separate(one, other, false);
  }
  for (const auto& one : out) check_same_type(site, one, "an output", in.front(), "inputs[0]");
  TORCH_CHECK_VALUE(in[rank_].bytes == out[rank_].bytes, site.prefix(), "inputs[", rank_, "] has ",
                    in[rank_].count(), " elements but outputs[", rank_, "] ", out[rank_].count(),
                    "; they are this rank's message to itself");
  // Even lists too go the uneven way: whether all ranks' lists are even, no rank knows.
  return submit(
      request, outputs,
      [in = std::move(in), out = std::move(out)](Communicator& communicator, const Call& call) {
        std::vector<ConstBlock> sent;
        std::vector<Block> received;
        for (const auto& one : in) sent.push_back(one.const_block());
        for (const auto& one : out) received.push_back(one.block());
        communicator.all_to_all(sent, received, in.front().type, false, call);
        for (const auto& one : out) one.copy_back();
      });
}

WorkPtr FastVideoBackend::barrier(const ::c10d::BarrierOptions& opts) {
  const auto request = this->request("barrier", ::c10d::OpType::BARRIER, "fastvideo:barrier",
                                     opts.timeout, opts.asyncOp);
  // torch does not say for which device. Once there is a GPU's side, its work has to be done too.
  const auto device = device_->connected();
  if (device.has_value()) {
    DeviceCall call{request.type,    request.title, request.site.operation,
                    request.timeout, ++sequence_,   false};
    return translated([&] {
      CallMemory nothing;
      nothing.device = *device;
      return device_->run(call, nothing, {}, [](Communicator& communicator, const Call& each) {
        communicator.barrier(each);
      });
    });
  }
  return submit(request, {},
                [](Communicator& communicator, const Call& call) { communicator.barrier(call); });
}

void FastVideoBackend::monitoredBarrier(const ::c10d::BarrierOptions& opts,
                                        bool /*wait_all_ranks*/) {
  auto blocking = opts;
  blocking.asyncOp = false;
  barrier(blocking)->wait();
}

}  // namespace fvd::c10d_
