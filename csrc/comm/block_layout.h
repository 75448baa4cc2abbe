// Where each peer's part of a tensor lies. Pure arithmetic: no ranks, no memory is touched.
//
// A block is what one rank owes another: `runs` pieces of `run_bytes`, `run_stride` bytes apart.
// With it the exchange of a sequence-parallel layer needs no transpose: the input is split along
// one dimension, the output along another, and the transport copies run by run.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fvd {

/// One peer's part of somebody's memory. Owns nothing. `Byte` is std::byte or const std::byte.
template <typename Byte>
struct BasicBlock {
  Byte* data = nullptr;
  std::size_t runs = 1;
  std::size_t run_bytes = 0;
  std::size_t run_stride = 0;  // from the start of one run to the start of the next; >= run_bytes

  std::size_t bytes() const noexcept { return runs * run_bytes; }
  bool contiguous() const noexcept { return runs <= 1 || run_stride == run_bytes; }
};
using Block = BasicBlock<std::byte>;
using ConstBlock = BasicBlock<const std::byte>;

/// One peer's part that lies in several blocks: laid end to end in this order.
using Blocks = std::span<const Block>;
using ConstBlocks = std::span<const ConstBlock>;

template <typename Byte>
std::size_t bytes_of(const BasicBlock<Byte>& block) noexcept {
  return block.bytes();
}
template <typename Byte>
std::size_t bytes_of(std::span<const BasicBlock<Byte>> blocks) noexcept {
  std::size_t bytes = 0;
  for (const auto& block : blocks) bytes += block.bytes();
  return bytes;
}

inline Block contiguous_block(void* data, std::size_t bytes) noexcept {
  return {static_cast<std::byte*>(data), 1, bytes, bytes};
}
inline ConstBlock contiguous_block(const void* data, std::size_t bytes) noexcept {
  return {static_cast<const std::byte*>(data), 1, bytes, bytes};
}

/// A tensor divided into one block per peer along one of its dimensions.
struct BlockLayout {
  std::size_t runs = 1;
  std::size_t run_bytes = 0;
  std::size_t run_stride = 0;
  std::size_t peer_stride = 0;  // from one peer's first byte to the next peer's first byte

  /// A contiguous tensor of `sizes` split evenly over `peers` along dimension `dim`.
  /// @throws Error(kInvalidArgument) if `dim` is out of range or its size is no multiple of
  /// `peers`.
  static BlockLayout split(std::span<const std::int64_t> sizes, std::size_t dim,
                           std::size_t element_bytes, std::size_t peers);

  std::size_t block_bytes() const noexcept { return runs * run_bytes; }

  Block block(void* base, std::size_t peer) const noexcept {
    return {static_cast<std::byte*>(base) + peer * peer_stride, runs, run_bytes, run_stride};
  }
  ConstBlock block(const void* base, std::size_t peer) const noexcept {
    return {static_cast<const std::byte*>(base) + peer * peer_stride, runs, run_bytes, run_stride};
  }
};

}  // namespace fvd
