// The kernels for AVX-512 as of Skylake (F, BW, DQ, VL). Every header comes before the target
// changes, so that no inline function of theirs is compiled for a processor that may not be there.
#include "shm/reduce_kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define FVD_VECTOR_BYTES 64
#define FVD_HAS_F16C 1
#define FVD_KERNEL_TABLE avx512_kernel
#include "shm/reduce_kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
