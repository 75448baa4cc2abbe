// The kernel that moves strided memory: any number of parts in one launch, see copy_part.h.
#include <cuda_runtime.h>

#include <algorithm>

#include "cuda_kernels/copy_parts.h"
#include "cuda_kernels/told.h"

namespace fvd::cuda {
namespace {

/// The argument of a launch. Kernels take 32764 bytes of them; what is not needed is not sent.
template <std::uint32_t kCount>
struct Parts {
  const std::uint32_t* given_up;
  std::uint32_t count;
  CopyPart list[kCount];
};
constexpr std::uint32_t kFewParts = 32;
static_assert(sizeof(Parts<kMostParts>) <= 32764);

/// All of a thread's units are under way before it writes the first: latency is what such a copy
/// waits for.
template <typename Unit>
__device__ __forceinline__ void copy_tile(const CopyPart& part, std::uint32_t tile) {
  const std::uint64_t first = static_cast<std::uint64_t>(tile) * kTileUnits;
  const std::uint64_t left = units_of(part) - first;
  const TileBegin begin = TileBegin::of(part, first);
  Unit units[kUnitsPerThread];
  std::byte* targets[kUnitsPerThread];
#pragma unroll
  for (std::uint32_t i = 0; i < kUnitsPerThread; ++i) {
    const std::uint32_t ahead = i * kThreads + threadIdx.x;
    if (ahead < left) {
      const UnitOffsets offsets = unit_offsets(part, begin, ahead);
      units[i] = *reinterpret_cast<const Unit*>(part.from + offsets.from);
      targets[i] = part.to + offsets.to;
    }
  }
#pragma unroll
  for (std::uint32_t i = 0; i < kUnitsPerThread; ++i) {
    const std::uint32_t ahead = i * kThreads + threadIdx.x;
    if (ahead < left) *reinterpret_cast<Unit*>(targets[i]) = units[i];
  }
}

template <std::uint32_t kCount>
__global__ void __launch_bounds__(kThreads)
    copy_kernel(const __grid_constant__ Parts<kCount> parts) {
  if (parts.given_up != nullptr && *parts.given_up != 0) return;
  const CopyPart& part = parts.list[part_of_tile(parts.list, parts.count, blockIdx.x)];
  const std::uint32_t tile = blockIdx.x - part.first_tile;
  switch (part.unit_log2) {
    case 4:
      return copy_tile<uint4>(part, tile);
    case 3:
      return copy_tile<std::uint64_t>(part, tile);
    case 2:
      return copy_tile<std::uint32_t>(part, tile);
    case 1:
      return copy_tile<std::uint16_t>(part, tile);
    default:
      return copy_tile<std::uint8_t>(part, tile);
  }
}

template <std::uint32_t kCount>
int load() {
  cudaFuncAttributes attributes;
  return told(cudaFuncGetAttributes(&attributes, copy_kernel<kCount>));
}

template <std::uint32_t kCount>
int launch(const CopyPart* list, std::uint32_t count, std::uint32_t tiles,
           const std::uint32_t* given_up, void* stream) {
  Parts<kCount> parts;
  parts.given_up = given_up;
  parts.count = count;
  std::copy_n(list, count, parts.list);
  void* arguments[] = {&parts};
  return told(cudaLaunchKernel(copy_kernel<kCount>, dim3(tiles), dim3(kThreads), arguments, 0,
                               static_cast<cudaStream_t>(stream)));
}

}  // namespace

int copy_parts(const CopyPart* list, std::uint32_t count, std::uint32_t tiles,
               const std::uint32_t* given_up, void* stream) {
  return count <= kFewParts ? launch<kFewParts>(list, count, tiles, given_up, stream)
                            : launch<kMostParts>(list, count, tiles, given_up, stream);
}

int load_copy_kernels() {
  const int error = load<kFewParts>();
  return error != 0 ? error : load<kMostParts>();
}

}  // namespace fvd::cuda
