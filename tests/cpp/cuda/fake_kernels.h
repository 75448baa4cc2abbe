// The kernels of csrc/cuda_kernels, done by the host: the same tiles, threads and index arithmetic.
#pragma once

#include <cstdint>

#include "cuda/kernel_table.h"

namespace fvd::test {

/// What a launch does, now.
void copy_parts_on_host(const cuda::CopyPart* parts, std::uint32_t count, std::uint32_t tiles);

void wait_for_ranks_on_host(const cuda::Barrier& barrier);

/// A table whose launches are done in the order of a stream of fake_cuda.h.
const cuda::KernelTable& fake_kernel_table();

/// Of that table, since the process began. Waits for ranks are counted apart.
struct Launches {
  long count = 0;
  long bytes = 0;  // read or written
};
Launches launches();
long rank_waits();

/// Has the next launch of that table fail.
void fail_next_launch();

}  // namespace fvd::test
