// The seam to the kernels that move strided blocks on the device.
#pragma once

#include <cstddef>
#include <span>

#include "comm/block_layout.h"
#include "nccl/abi.h"

namespace fvd::nccl {

/// A block and where it lies in the packed memory, in bytes from its start.
struct PackedBlock {
  Block block;
  std::size_t offset = 0;
};

/// Enqueued on `stream`. The list of blocks is on the host and only valid during the call. Null
/// where the build has no kernels: strided blocks are then kUnsupported, contiguous ones are copied
/// by the CUDA runtime.
struct BlockKernels {
  void (*pack)(std::span<const PackedBlock> from, std::byte* to, CudaStream stream) = nullptr;
  void (*unpack)(const std::byte* from, std::span<const PackedBlock> to,
                 CudaStream stream) = nullptr;
};

}  // namespace fvd::nccl
