// Errors of CUDA's calls, as the table's functions return them.
#pragma once

#include <cuda_runtime.h>

namespace fvd::cuda {

/// The error goes to the caller, and not also to whoever next asks CUDA for the last one.
inline int told(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace fvd::cuda
