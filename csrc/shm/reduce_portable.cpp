// The kernels for any machine: 16-byte vectors, which are SSE2 on x86-64 and NEON on arm64.
#include "shm/reduce_kernels.h"

#define FVD_VECTOR_BYTES 16
#define FVD_KERNEL_TABLE portable_kernel
#include "shm/reduce_kernels.inc"
