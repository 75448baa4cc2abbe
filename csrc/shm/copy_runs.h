// Inner seam of copy.cpp: the inner loop of all moves.
#pragma once

#include <cstddef>

#include "shm/copy.h"

namespace fvd::shm {

/// Copies `runs` runs of `run_bytes` bytes; one starts `to_stride` / `from_stride` bytes after the
/// other. All are > 0, except the strides of a single run. Source and target may not overlap.
/// With kStreaming, finish_streaming() has to follow before anybody is told of the bytes.
void copy_runs(std::byte* to, std::size_t to_stride, const std::byte* from, std::size_t from_stride,
               std::size_t runs, std::size_t run_bytes, CacheHint hint);

/// Orders what was written around the caches before all later stores of this thread.
void finish_streaming() noexcept;

}  // namespace fvd::shm
