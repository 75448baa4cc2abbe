// What this package's extension of kernels, `_C_cuda`, offers: a table of plain functions, so that
// neither side needs the other to be linked, and a build without nvcc has everything else.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/copy_part.h"
#include "cuda/rank_barrier.h"

namespace fvd::cuda {

/// Changes with anything in this file, copy_part.h or rank_barrier.h that both sides have to mean
/// alike.
constexpr std::uint32_t kKernelTableVersion = 2;

/// Under this name the table comes in a Python capsule.
constexpr const char* kKernelTableName = "fastvideo_dist._C_cuda.kernels";

/// Of one launch: what fits into the arguments of a kernel.
constexpr std::uint32_t kMostParts = 256;
constexpr std::uint32_t kMostTiles = 0x7fffffff;

struct KernelTable {
  std::uint32_t version;

  /// Has the current device load all kernels, which CUDA else does with the first launch of each,
  /// when it may have to wait for what runs there. Returns as copy_parts.
  int (*load_kernels)();

  /// Enqueues on `stream` (a cudaStream_t of the current device) the copies of 1 to kMostParts
  /// parts, whose tiles are numbered through from 0 to `tiles` - 1. The list is only read during
  /// the call. `given_up`: memory of the device, or null; if it is not 0 when a block of threads
  /// begins, that block copies nothing. Returns 0, or the number of a CUDA error.
  int (*copy_parts)(const CopyPart* parts, std::uint32_t count, std::uint32_t tiles,
                    const std::uint32_t* given_up, void* stream);

  /// Enqueues on `stream` a wait for the other ranks. `barrier` is only read during the call.
  /// Returns likewise.
  int (*wait_for_ranks)(const Barrier* barrier, void* stream);

  /// In CUDA's words.
  const char* (*error_text)(int error);
};

}  // namespace fvd::cuda
