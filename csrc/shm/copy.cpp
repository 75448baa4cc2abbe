#include "shm/copy.h"

#include <algorithm>
#include <cstring>

#include "comm/error.h"
#include "shm/copy_runs.h"

namespace fvd::shm {
namespace {

/// A block whose runs lie end to end, as one run.
template <typename Byte>
BasicBlock<Byte> merged(BasicBlock<Byte> block) noexcept {
  const std::size_t bytes = block.bytes();
  return block.contiguous() ? BasicBlock<Byte>{block.data, 1, bytes, bytes} : block;
}

/// Runs of `part` bytes seen in groups: from part to part, and from group to group.
struct Strides {
  std::size_t inner;
  std::size_t outer;
};

/// The strides of a block cut into parts of `part` bytes, grouped by `parts`. Either a run is one
/// part or it is one group.
template <typename Byte>
Strides strides(const BasicBlock<Byte>& block, std::size_t part, std::size_t parts) noexcept {
  if (block.run_bytes == part) return {block.run_stride, parts * block.run_stride};
  return {part, block.run_stride};
}

/// The runs of one block are a multiple of the other's.
void copy_grouped(Block to, ConstBlock from, CacheHint hint) {
  const std::size_t part = std::min(to.run_bytes, from.run_bytes);
  const std::size_t group = std::max(to.run_bytes, from.run_bytes);
  // Equal runs are a single group.
  const std::size_t parts = part == group ? to.runs : group / part;
  const std::size_t groups = to.bytes() / (parts * part);
  const Strides target = strides(to, part, parts);
  const Strides source = strides(from, part, parts);
  for (std::size_t g = 0; g < groups; ++g) {
    copy_runs(to.data + g * target.outer, target.inner, from.data + g * source.outer, source.inner,
              parts, part, hint);
  }
}

/// No run is a multiple of the other: piece by piece, to the nearer of the two ends.
void copy_pieces(Block to, ConstBlock from, CacheHint hint) {
  std::byte* target = to.data;
  const std::byte* source = from.data;
  std::size_t target_left = to.run_bytes;
  std::size_t source_left = from.run_bytes;
  for (std::size_t left = to.bytes(); left > 0;) {
    const std::size_t piece = std::min(target_left, source_left);
    copy_runs(target, piece, source, piece, 1, piece, hint);
    left -= piece;
    target_left -= piece;
    source_left -= piece;
    if (left == 0) return;  // the step to a next run would leave the block
    target += piece;
    source += piece;
    if (target_left == 0) {
      target += to.run_stride - to.run_bytes;
      target_left = to.run_bytes;
    }
    if (source_left == 0) {
      source += from.run_stride - from.run_bytes;
      source_left = from.run_bytes;
    }
  }
}

/// Calls body(address, runs, run_bytes) for the parts a range of a block consists of: the rest of a
/// run, whole runs, the beginning of a run. `bytes` > 0.
template <typename Byte, typename Body>
void for_parts(BasicBlock<Byte> block, std::size_t offset, std::size_t bytes, Body body) {
  block = merged(block);
  Byte* run = block.data + offset / block.run_bytes * block.run_stride;
  if (const std::size_t inside = offset % block.run_bytes; inside != 0) {
    const std::size_t rest = std::min(block.run_bytes - inside, bytes);
    body(run + inside, 1, rest);
    bytes -= rest;
    if (bytes == 0) return;
    run += block.run_stride;
  }
  const std::size_t whole = bytes / block.run_bytes;
  if (whole > 0) body(run, whole, block.run_bytes);
  const std::size_t rest = bytes - whole * block.run_bytes;
  if (rest > 0) body(run + whole * block.run_stride, 1, rest);
}

void check_range(std::size_t block_bytes, std::size_t offset, std::size_t bytes) {
  FVD_CHECK(offset <= block_bytes && bytes <= block_bytes - offset, kInvalidArgument, "copy of ",
            bytes, " bytes from offset ", offset, " on, of a block of ", block_bytes, " bytes");
}

}  // namespace

void copy(Block to, ConstBlock from, CacheHint hint) {
  FVD_CHECK(to.bytes() == from.bytes(), kInvalidArgument, "copy of a block of ", from.bytes(),
            " bytes into one of ", to.bytes());
  if (to.bytes() == 0) return;
  to = merged(to);
  from = merged(from);
  if (to.run_bytes % from.run_bytes == 0 || from.run_bytes % to.run_bytes == 0) {
    copy_grouped(to, from, hint);
  } else {
    copy_pieces(to, from, hint);
  }
  if (hint == CacheHint::kStreaming) finish_streaming();
}

void copy_range(std::byte* to, ConstBlock from, std::size_t offset, std::size_t bytes,
                CacheHint hint) {
  check_range(from.bytes(), offset, bytes);
  if (bytes == 0) return;
  for_parts(from, offset, bytes,
            [&](const std::byte* part, std::size_t runs, std::size_t run_bytes) {
              copy_runs(to, run_bytes, part, from.run_stride, runs, run_bytes, hint);
              to += runs * run_bytes;
            });
  if (hint == CacheHint::kStreaming) finish_streaming();
}

void copy_range(Block to, std::size_t offset, const std::byte* from, std::size_t bytes,
                CacheHint hint) {
  check_range(to.bytes(), offset, bytes);
  if (bytes == 0) return;
  for_parts(to, offset, bytes, [&](std::byte* part, std::size_t runs, std::size_t run_bytes) {
    copy_runs(part, to.run_stride, from, run_bytes, runs, run_bytes, hint);
    from += runs * run_bytes;
  });
  if (hint == CacheHint::kStreaming) finish_streaming();
}

}  // namespace fvd::shm
