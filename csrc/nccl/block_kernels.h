// The seam to the kernels: those that move strided blocks on the device, and one that has ranks
// wait for each other there.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

#include "comm/block_layout.h"
#include "nccl/abi.h"

namespace fvd::nccl {

/// A block and where it lies in the packed memory, in bytes from its start.
struct PackedBlock {
  Block block;
  std::size_t offset = 0;
};

/// One wait of all ranks for each other. Each tells the others a number and waits until it has
/// heard that number, or a greater one, from each; or gives up, when its time is over or by an
/// abort.
struct RankBarrier {
  static constexpr int kMostRanks = 64;

  std::uint64_t number = 0;
  int rank = 0;
  bool begins = false;  // an abort is heard though all have come: nothing is to follow
  std::span<std::uint64_t* const> tell;  // of each rank: the word in its memory that is this rank's
  const std::byte* heard = nullptr;      // rank r's word in this rank's memory is at r * step
  std::size_t step = 0;
  std::uint32_t* given_up = nullptr;     // on the device; if it is not 0 already nothing is done
  const std::uint32_t* abort = nullptr;  // on the host
  std::uint64_t* report = nullptr;  // two words on the host: what was given up; who was missing
  std::chrono::nanoseconds limit{0};
  std::chrono::nanoseconds linger{0};  // after giving up, before the stream goes on
};

/// Enqueued on `stream`. Lists are on the host and only valid during the call. Null where the build
/// has no kernels: strided blocks are then kUnsupported, contiguous ones are copied by the CUDA
/// runtime, and ranks do not write into each other's memory.
struct BlockKernels {
  void (*pack)(std::span<const PackedBlock> from, std::byte* to, CudaStream stream) = nullptr;
  void (*unpack)(const std::byte* from, std::span<const PackedBlock> to,
                 CudaStream stream) = nullptr;
  void (*barrier)(const RankBarrier& barrier, CudaStream stream) = nullptr;
};

}  // namespace fvd::nccl
