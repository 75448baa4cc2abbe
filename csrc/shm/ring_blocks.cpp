#include "shm/ring_blocks.h"

#include <cstdlib>

#include "comm/error.h"

namespace fvd::shm {
namespace {

constexpr std::uint64_t kAlignment = 64;
// Smaller ones stay in malloc's own lists.
constexpr std::uint64_t kLeastKeptBytes = 64 << 10;
constexpr std::size_t kMostKept = 256;

std::uint64_t rounded(std::uint64_t bytes) {
  const std::uint64_t step = bytes < kLeastKeptBytes ? kAlignment : kLeastKeptBytes;
  return (bytes + step - 1) / step * step;
}

}  // namespace

RingBlocks::RingBlocks() { kept_.reserve(kMostKept); }  // give_back may not throw

std::shared_ptr<RingBlocks> RingBlocks::create() {
  return std::shared_ptr<RingBlocks>(new RingBlocks);
}

RingBlocks::~RingBlocks() {
  for (const Block& block : kept_) std::free(block.data);
}

std::shared_ptr<std::byte> RingBlocks::take(std::uint64_t bytes) {
  if (bytes == 0) return nullptr;
  Block block = reuse(bytes);
  if (block.data == nullptr) {
    block.bytes = rounded(bytes);
    block.data = static_cast<std::byte*>(std::aligned_alloc(kAlignment, block.bytes));
    FVD_CHECK(block.data != nullptr, kSystem, "no memory for a message's part of ", bytes,
              " bytes");
  }
  if (block.bytes < kLeastKeptBytes) return {block.data, [](std::byte* data) { std::free(data); }};
  return {block.data, [self = shared_from_this(), block](std::byte*) { self->give_back(block); }};
}

/// The last one given back that is not much too large: what it holds may still be in the caches.
RingBlocks::Block RingBlocks::reuse(std::uint64_t bytes) noexcept {
  const std::unique_lock lock(lock_, std::try_to_lock);
  if (!lock) return {};
  for (std::size_t i = kept_.size(); i-- > 0;) {
    const Block block = kept_[i];
    if (block.bytes < bytes || block.bytes - bytes > bytes / 4 + kLeastKeptBytes) continue;
    kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(i));
    kept_bytes_ -= block.bytes;
    return block;
  }
  return {};
}

void RingBlocks::give_back(Block block) noexcept {
  const std::unique_lock lock(lock_, std::try_to_lock);
  if (!lock || block.bytes > kMostKeptBytes) {
    std::free(block.data);
    return;
  }
  while (kept_.size() == kMostKept || kept_bytes_ + block.bytes > kMostKeptBytes) {
    std::free(kept_.front().data);
    kept_bytes_ -= kept_.front().bytes;
    kept_.erase(kept_.begin());
  }
  kept_.push_back(block);
  kept_bytes_ += block.bytes;
}

}  // namespace fvd::shm
