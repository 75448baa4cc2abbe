// The kernels for AVX2 and F16C. Every header comes before the target changes, so that no inline
// function of theirs is compiled for a processor that may not be there.
#include "shm/reduce_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c")
#endif

#define FVD_VECTOR_BYTES 32
#define FVD_HAS_F16C 1
#define FVD_KERNEL_TABLE avx2_kernel
#include "shm/reduce_kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
