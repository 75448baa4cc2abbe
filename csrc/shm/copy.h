// Moving blocks: memory in runs to memory in runs. Knows no ranks, no threads, no shared memory.
//
// All addresses and lengths are in bytes and need no alignment. Source and target may not overlap.
// Safe from any thread, except for two writing the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "comm/block_layout.h"

namespace fvd::shm {

/// What is known about the target.
enum class CacheHint {
  kCached,     // somebody will read it soon, or it fits the caches
  kStreaming,  // it is larger than the caches: long runs are written around them
};

/// For an output of so many bytes. Larger ones than this do not stay in the caches until somebody
/// reads them. Measured with two ranks that share a third-level cache of 32 MiB: at 4 MiB writing
/// around it costs a third, at 32 MiB it wins one.
constexpr CacheHint hint_for(std::uint64_t output_bytes) noexcept {
  return output_bytes >= 16 << 20 ? CacheHint::kStreaming : CacheHint::kCached;
}

/// Both blocks have equal bytes(); their runs may differ.
/// @throws Error(kInvalidArgument) if the lengths differ.
void copy(Block to, ConstBlock from, CacheHint hint = CacheHint::kCached);

/// Gathers the bytes [offset, offset + bytes) of `from`, its runs laid end to end, into `to`.
/// @throws Error(kInvalidArgument) if the range ends behind the block.
void copy_range(std::byte* to, ConstBlock from, std::size_t offset, std::size_t bytes,
                CacheHint hint = CacheHint::kCached);

/// The reverse: writes `bytes` bytes of `from` to the range [offset, offset + bytes) of `to`.
/// @throws Error(kInvalidArgument) if the range ends behind the block.
void copy_range(Block to, std::size_t offset, const std::byte* from, std::size_t bytes,
                CacheHint hint = CacheHint::kCached);

}  // namespace fvd::shm
