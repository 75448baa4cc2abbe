// How ranks wait for each other on the device, as a kernel sees it. The kernel itself has run on no
// GPU yet: on the host there is a copy of what it does, and tests of that.
//
// Rank r has one word in the memory of every rank, which nobody else writes and whose number only
// grows. To arrive is to write the number of the wait there; who has heard it, or a greater one,
// from every rank goes on. No word is ever set back, so nothing has to be agreed between two waits.
//
// Who gives up has told its number all the same, and others may still begin to write into its
// memory because of that. So it reports at once, for its host to tell theirs, and keeps its stream
// from going on until they have heard it and are done.
#pragma once

#include <cstdint>

#include "cuda/copy_part.h"

namespace fvd::cuda {

constexpr std::uint32_t kMostBarrierRanks = 64;  // the missing are told as bits of a number

/// Part of the interface to the extension of kernels: plain memory, no constructor.
struct Barrier {
  std::uint64_t* tell[kMostBarrierRanks];  // this rank's word in the memory of each rank
  const std::byte* heard;                  // rank r's word in this rank's memory is at r * step
  std::uint64_t step;
  std::uint64_t number;
  std::uint64_t limit;         // nanoseconds
  std::uint64_t linger;        // nanoseconds from giving up to the end of the kernel
  std::uint32_t* given_up;     // on the device: 1 from when this rank has given up a wait
  const std::uint32_t* abort;  // in pinned memory of the host, as is
  std::uint64_t* report;       // the number that was given up, then the ranks missing, as bits
  std::uint32_t rank;
  std::uint32_t ranks;
  std::uint32_t begins;  // 1: an abort is heard though all have come, as nothing is to follow
  std::uint32_t reserved;
};
static_assert(sizeof(Barrier) == kMostBarrierRanks * 8 + 80);

/// Whether to wait longer. Times are nanoseconds of a clock that does not go back.
struct Patience {
  std::uint64_t begin;
  std::uint64_t limit;

  FVD_HOST_DEVICE bool lasts(std::uint64_t now, bool abort) const {
    // Signed: the clocks of a GPU's processors may be a tick apart.
    return !abort && static_cast<std::int64_t>(now - begin) < static_cast<std::int64_t>(limit);
  }
};

FVD_HOST_DEVICE std::uint64_t bit_of(std::uint32_t rank) { return std::uint64_t{1} << rank; }

}  // namespace fvd::cuda
