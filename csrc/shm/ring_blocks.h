// Memory for what a reader of a ring receives: taken again when its last user has let it go.
//
// What malloc gets from the kernel and gives back costs a page fault every 4 KiB, which for a
// message of many megabytes is as much as copying it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace fvd::shm {

/// Safe from any thread, and in a forked child: nobody ever waits for its lock.
class RingBlocks : public std::enable_shared_from_this<RingBlocks> {
 public:
  /// What is kept for the next message at most.
  static constexpr std::uint64_t kMostKeptBytes = 64 << 20;

  static std::shared_ptr<RingBlocks> create();
  ~RingBlocks();
  RingBlocks(const RingBlocks&) = delete;

  /// Uninitialised, aligned to 64 bytes; null for 0 bytes. May outlive this object.
  /// @throws Error(kSystem)
  std::shared_ptr<std::byte> take(std::uint64_t bytes);

 private:
  struct Block {
    std::byte* data = nullptr;
    std::uint64_t bytes = 0;
  };

  RingBlocks();
  Block reuse(std::uint64_t bytes) noexcept;
  void give_back(Block block) noexcept;

  std::mutex lock_;
  std::vector<Block> kept_;  // the last to come is at the end
  std::uint64_t kept_bytes_ = 0;
};

}  // namespace fvd::shm
