#include "cuda/copy_plan.h"

#include <algorithm>

#include "cuda/kernel_table.h"

namespace fvd::cuda {
namespace {

constexpr unsigned kWidestLog2 = 4;

/// The widest unit that `bits`, an "or" of addresses, strides and lengths, is a multiple of.
unsigned unit_log2_of(std::uint64_t bits) {
  unsigned log2 = 0;
  while (log2 < kWidestLog2 && (bits >> log2 & 1) == 0) ++log2;
  return log2;
}

std::uint64_t address(const void* data) { return reinterpret_cast<std::uintptr_t>(data); }

}  // namespace

void CopyPlan::add(const StridedCopy& copy) {
  const auto element = static_cast<std::int64_t>(copy.element_bytes);
  std::vector<Extent> extents;
  for (std::size_t d = 0; d < copy.sizes.size(); ++d) {
    if (copy.sizes[d] == 0) return;
    if (copy.sizes[d] == 1) continue;
    const Extent inner{static_cast<std::uint64_t>(copy.sizes[d]), copy.from_strides[d] * element,
                       copy.to_strides[d] * element};
    const auto length = static_cast<std::int64_t>(inner.size);
    if (!extents.empty() && extents.back().from_stride == length * inner.from_stride &&
        extents.back().to_stride == length * inner.to_stride) {
      extents.back() = {extents.back().size * inner.size, inner.from_stride, inner.to_stride};
    } else {
      extents.push_back(inner);
    }
  }
  // The bytes that lie end to end on both sides become the last dimension.
  std::uint64_t run = copy.element_bytes;
  if (!extents.empty() && extents.back().from_stride == element &&
      extents.back().to_stride == element) {
    run *= extents.back().size;
    extents.pop_back();
  }
  std::uint64_t bits = address(copy.from) | address(copy.to) | run;
  for (const Extent& extent : extents) {
    bits |= static_cast<std::uint64_t>(extent.from_stride) |
            static_cast<std::uint64_t>(extent.to_stride);
  }
  const unsigned log2 = unit_log2_of(bits);
  const auto unit = std::int64_t{1} << log2;
  if (run >> log2 > 1 || extents.empty()) extents.push_back({run >> log2, unit, unit});
  add(static_cast<const std::byte*>(copy.from), static_cast<std::byte*>(copy.to), extents, log2);
}

// What has too many dimensions, or too long ones, becomes several parts.
void CopyPlan::add(const std::byte* from, std::byte* to, std::span<const Extent> extents,
                   unsigned unit_log2) {
  const bool too_many = extents.size() > kPartDims;
  for (std::size_t d = 0; d < extents.size(); ++d) {
    const Extent& along = extents[d];
    if (along.size <= kLongestDim && !(too_many && d == 0)) continue;
    const std::uint64_t step = too_many && d == 0 ? 1 : kLongestDim;
    std::vector<Extent> piece(extents.begin(), extents.end());
    for (std::uint64_t begin = 0; begin < along.size; begin += step) {
      const auto skip = static_cast<std::int64_t>(begin);
      piece[d].size = std::min(step, along.size - begin);
      const std::span<const Extent> rest(piece);
      add(from + skip * along.from_stride, to + skip * along.to_stride,
          too_many && d == 0 ? rest.subspan(1) : rest, unit_log2);
    }
    return;
  }
  CopyPart part{};
  part.from = from;
  part.to = to;
  part.unit_log2 = static_cast<std::uint8_t>(unit_log2);
  std::fill(std::begin(part.sizes), std::end(part.sizes), 1);
  const std::size_t missing = kPartDims - extents.size();
  for (std::size_t d = 0; d < extents.size(); ++d) {
    part.sizes[missing + d] = static_cast<std::uint32_t>(extents[d].size);
    part.from_strides[missing + d] = extents[d].from_stride;
    part.to_strides[missing + d] = extents[d].to_stride;
  }
  for (std::size_t d = 1; d < kPartDims; ++d) {
    const Divider divider = Divider::of(part.sizes[d]);
    part.magics[d - 1] = divider.magic;
    part.shifts[d - 1] = static_cast<std::uint8_t>(divider.shift);
  }
  append(part);
}

void CopyPlan::append(const CopyPart& part) {
  // No part has too many for a launch: that would be 4 TiB of memory to be written.
  const std::uint64_t tiles = (units_of(part) + kTileUnits - 1) / kTileUnits;
  if (launches_.empty() || launches_.back().count == kMostParts ||
      launches_.back().tiles + tiles > kMostTiles) {
    launches_.push_back({parts_.size(), 0, 0});
  }
  Launch& launch = launches_.back();
  parts_.push_back(part);
  parts_.back().first_tile = launch.tiles;
  ++launch.count;
  launch.tiles += static_cast<std::uint32_t>(tiles);
  bytes_ += units_of(part) << part.unit_log2;
}

}  // namespace fvd::cuda
