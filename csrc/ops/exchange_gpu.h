// The exchange of tensors on a GPU: pushed into the results of all ranks where those can be reached
// (exchange_push.h), else one kernel on one side of one grouped call of NCCL. Of the latter:
//
// NCCL wants a message in one piece. Of the two ends of an exchange one is in few pieces: along the
// outer of the two dimensions a contiguous tensor is cut into one piece for each index of what lies
// before it, which is 1 for a batch of 1. There NCCL reads or writes the tensor itself. The other
// end is packed or unpacked by one kernel for all tensors and all ranks, which also copies what
// stays on this rank. Whether a run is a message follows from the shapes, so all ranks agree.
//
// Device memory moved, for tensors of n bytes on each of W ranks: of what leaves, n (W-1)/W, a
// kernel reads and writes all, NCCL reads it and writes it at its other end, 4 times in all; what
// stays, n/W, is read and written once. Together (4 - 2/W) n. A tensor whose strides keep NCCL from
// reading it where it lies (only when gathering along the inner dimension) costs another
// 2 n (W-1)/W, as both ends do with more than kMostMessages pieces.
//
// Nothing of it waits, asks an event or connects by itself, and memory comes from torch's
// allocator: it may be captured in a CUDA graph once the ranks have met.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/exchange.h"

namespace fvd::ops {

/// More messages of a pair of ranks for a tensor cost NCCL more than another copy.
constexpr std::int64_t kMostMessages = 16;

/// exchange() of tensors on one GPU: enqueued on the current stream.
/// @throws as exchange(), and NotImplementedError if the package was built without kernels
std::vector<at::Tensor> exchange_on_gpu(const OpCall& call, at::TensorList xs,
                                        std::size_t scatter_dim, std::size_t gather_dim,
                                        const std::vector<Splits>& splits);

}  // namespace fvd::ops
