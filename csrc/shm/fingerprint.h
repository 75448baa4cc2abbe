// The check that all ranks call the same thing. It rides in the cache line a peer has to read
// anyway.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

#include "shm/slot.h"

namespace fvd::shm {

/// One step of a multiply-xor hash; 64-bit mixing constants of splitmix64 (Steele, Lea, Flood
/// 2014).
constexpr std::uint64_t mix(std::uint64_t hash, std::uint64_t value) noexcept {
  hash = (hash ^ value) * 0xbf58476d1ce4e5b9ULL;
  return hash ^ (hash >> 29);
}

/// Equal on two ranks exactly (but for 1 in 2^64) if they call the same collective with the same
/// reduce op, dtype, count, root and layout, as the same in order, in the same group. Shapes do not
/// count, unless the caller makes a layout of them: (2, 3) and (3, 2) may be reduced together.
inline std::uint64_t fingerprint(const Record& record, std::uint64_t epoch,
                                 std::int64_t sequence) noexcept {
  const auto words = static_cast<std::uint64_t>(record.op) |
                     static_cast<std::uint64_t>(record.type) << 8 |
                     static_cast<std::uint64_t>(record.reduce) << 16 |
                     static_cast<std::uint64_t>(record.has_type) << 24 |
                     static_cast<std::uint64_t>(record.has_reduce) << 25 |
                     static_cast<std::uint64_t>(record.even) << 26 |
                     static_cast<std::uint64_t>(static_cast<std::uint32_t>(record.root)) << 32;
  std::uint64_t hash = mix(epoch, static_cast<std::uint64_t>(sequence));
  hash = mix(hash, words);
  hash = mix(hash, record.count);
  hash = mix(hash, record.layout);
  return mix(hash, std::bit_cast<std::uint64_t>(record.factor));
}

/// "all_reduce(SUM, float32 x 1048576)".
std::string describe(const Record& record);

}  // namespace fvd::shm
