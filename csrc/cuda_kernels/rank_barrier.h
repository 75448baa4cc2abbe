// The kernel in which ranks wait for each other, for the table.
#pragma once

#include "cuda/kernel_table.h"

namespace fvd::cuda {

int wait_for_ranks(const Barrier* barrier, void* stream);
int load_barrier_kernel();

}  // namespace fvd::cuda
