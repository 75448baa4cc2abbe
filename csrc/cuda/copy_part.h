// One strided copy as a kernel sees it, and all of its index arithmetic: compiled for the host,
// where it is tested, and for the device.
//
// A part is an array of up to four dimensions whose elements are units of 1, 2, 4, 8 or 16 bytes,
// the widest access that all of its addresses allow. Its units are numbered in the order of a
// contiguous array and dealt out in tiles; a tile is the work of one block of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define FVD_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FVD_HOST_DEVICE inline
#endif

namespace fvd::cuda {

constexpr int kPartDims = 4;
constexpr std::uint32_t kThreads = 256;       // of a block
constexpr std::uint32_t kUnitsPerThread = 8;  // read before the first is written
constexpr std::uint32_t kTileUnits = kThreads * kUnitsPerThread;

/// No dimension is longer: then an index within a tile's reach of one is below 2^31, as Divider
/// wants it.
constexpr std::uint32_t kLongestDim = 1u << 30;

/// Division of a number below 2^31 by another, by a multiplication and a shift.
struct Divider {
  std::uint32_t magic = 1;
  std::uint32_t shift = 0;

  static Divider of(std::uint32_t divisor) {
    Divider result;
    while ((std::uint64_t{1} << result.shift) < divisor) ++result.shift;
    const std::uint64_t excess = (std::uint64_t{1} << result.shift) - divisor;
    result.magic = static_cast<std::uint32_t>((excess << 32) / divisor + 1);
    return result;
  }

  FVD_HOST_DEVICE static std::uint32_t divide(std::uint32_t number, std::uint32_t magic,
                                              std::uint32_t shift) {
    const auto high =
        static_cast<std::uint32_t>((static_cast<std::uint64_t>(number) * magic) >> 32);
    return (high + number) >> shift;
  }
};

/// Part of the interface to the extension of kernels: plain memory, no constructor.
struct CopyPart {
  const std::byte* from;
  std::byte* to;
  std::int64_t from_strides[kPartDims];  // in bytes, outermost dimension first
  std::int64_t to_strides[kPartDims];
  std::uint32_t sizes[kPartDims];       // the last in units
  std::uint32_t magics[kPartDims - 1];  // Divider of sizes[1], [2], [3]
  std::uint8_t shifts[kPartDims - 1];
  std::uint8_t unit_log2;    // a unit has 1 << unit_log2 bytes
  std::uint32_t first_tile;  // of this part, within its launch
  std::uint32_t reserved;
};
static_assert(sizeof(CopyPart) == 120);

FVD_HOST_DEVICE std::uint64_t units_of(const CopyPart& part) {
  return static_cast<std::uint64_t>(part.sizes[0]) * part.sizes[1] * part.sizes[2] * part.sizes[3];
}

/// The part that a tile belongs to: the last one that begins no later.
FVD_HOST_DEVICE std::uint32_t part_of_tile(const CopyPart* parts, std::uint32_t count,
                                           std::uint32_t tile) {
  std::uint32_t first = 0;
  std::uint32_t last = count - 1;
  while (first < last) {
    const std::uint32_t middle = first + (last - first + 1) / 2;
    if (parts[middle].first_tile <= tile) {
      first = middle;
    } else {
      last = middle - 1;
    }
  }
  return first;
}

/// Where a tile begins. The divisions are slow and made once for all of its threads' units.
struct TileBegin {
  std::uint32_t at[kPartDims];

  FVD_HOST_DEVICE static TileBegin of(const CopyPart& part, std::uint64_t unit) {
    TileBegin begin;
    for (int d = kPartDims - 1; d > 0; --d) {
      begin.at[d] = static_cast<std::uint32_t>(unit % part.sizes[d]);
      unit /= part.sizes[d];
    }
    begin.at[0] = static_cast<std::uint32_t>(unit);
    return begin;
  }
};

/// In bytes from the part's first unit.
struct UnitOffsets {
  std::int64_t from;
  std::int64_t to;
};

/// Where the unit lies that comes `ahead` (below kTileUnits) units after `begin`.
FVD_HOST_DEVICE UnitOffsets unit_offsets(const CopyPart& part, const TileBegin& begin,
                                         std::uint32_t ahead) {
  UnitOffsets offsets{0, 0};
  for (int d = kPartDims - 1; d > 0; --d) {
    const std::uint32_t along = begin.at[d] + ahead;
    ahead = Divider::divide(along, part.magics[d - 1], part.shifts[d - 1]);
    const std::uint32_t index = along - ahead * part.sizes[d];
    offsets.from += index * part.from_strides[d];
    offsets.to += index * part.to_strides[d];
  }
  const std::uint32_t index = begin.at[0] + ahead;
  offsets.from += index * part.from_strides[0];
  offsets.to += index * part.to_strides[0];
  return offsets;
}

}  // namespace fvd::cuda
