// The few words in which the ranks of a group tell each other, on the device, how far they have
// come.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nccl/block_kernels.h"
#include "nccl/cuda_api.h"

namespace fvd::nccl {

/// In the memory of a rank's device.
struct RankPad {
  // A sector of its own for each, so that no two ranks write to one.
  struct alignas(32) Word {
    std::uint64_t number;
  };
  Word heard[RankBarrier::kMostRanks];  // written by the ranks
  std::uint32_t given_up;               // by this rank's kernels
};

/// In pinned memory, between a rank's host and its device.
struct alignas(64) HostWords {
  std::uint32_t abort;      // by the host
  std::uint64_t report[2];  // by the device: see RankBarrier
};

struct RankPlace {
  RankPad* pad = nullptr;
  HostWords* words = nullptr;  // zeroed
};

/// A place of the current device, which must be `device`. Places are parts of a few allocations
/// that are never freed: another rank may have them open, or a kernel of its write to one, after
/// this rank has left. From any thread. @throws Error(kLibrary)
RankPlace take_place(const CudaApi& cuda, int device);

/// Only if all calls that used it have ended well: then nobody writes to it any more, and it may
/// serve another group.
void give_place(int device, RankPlace place) noexcept;

}  // namespace fvd::nccl
