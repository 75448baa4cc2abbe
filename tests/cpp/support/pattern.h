// Blocks in runs whose bytes tell where they come from, and gaps between the runs that must stay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "comm/block_layout.h"

namespace fvd::test {

/// Byte `index` of what `from` sends to `to` in call `round`.
inline std::byte pattern(int from, int to, std::size_t round, std::size_t index) {
  std::uint64_t mixed = index + 1000003U * static_cast<std::uint64_t>(from) +
                        7919U * static_cast<std::uint64_t>(to) + 104729U * round;
  mixed *= 0x9e3779b97f4a7c15U;
  return static_cast<std::byte>(mixed >> 56);
}

/// A block of `bytes` in up to `most_runs` runs, three bytes apart.
class Strided {
 public:
  static constexpr std::byte kGap{0xee};
  static constexpr std::size_t kGapBytes = 3;

  Strided(std::size_t bytes, std::size_t most_runs) {
    for (runs_ = most_runs; runs_ > 1 && (bytes % runs_ != 0 || bytes == 0); --runs_) {
    }
    run_bytes_ = bytes / runs_;
    memory_.assign(runs_ * (run_bytes_ + kGapBytes), kGap);
  }

  Block block() { return {memory_.data(), runs_, run_bytes_, run_bytes_ + kGapBytes}; }
  ConstBlock const_block() const {
    return {memory_.data(), runs_, run_bytes_, run_bytes_ + kGapBytes};
  }

  void fill(int from, int to, std::size_t round) {
    for (std::size_t i = 0; i < runs_ * run_bytes_; ++i) at(i) = pattern(from, to, round, i);
  }
  /// The first byte that is not as `fill` would have it, gaps included; -1 if all are.
  long first_wrong(int from, int to, std::size_t round) const {
    for (std::size_t i = 0; i < runs_ * run_bytes_; ++i) {
      if (at(i) != pattern(from, to, round, i)) return static_cast<long>(i);
    }
    return gaps_untouched() ? -1 : static_cast<long>(runs_ * run_bytes_);
  }
  bool untouched() const {
    for (std::byte byte : memory_) {
      if (byte != kGap) return false;
    }
    return true;
  }

 private:
  std::byte& at(std::size_t i) {
    return memory_[i / run_bytes_ * (run_bytes_ + kGapBytes) + i % run_bytes_];
  }
  const std::byte& at(std::size_t i) const { return const_cast<Strided*>(this)->at(i); }
  bool gaps_untouched() const {
    for (std::size_t run = 0; run < runs_; ++run) {
      for (std::size_t i = 0; i < kGapBytes; ++i) {
        if (memory_[run * (run_bytes_ + kGapBytes) + run_bytes_ + i] != kGap) return false;
      }
    }
    return true;
  }

  std::size_t runs_ = 1;
  std::size_t run_bytes_ = 0;
  std::vector<std::byte> memory_;
};

}  // namespace fvd::test
