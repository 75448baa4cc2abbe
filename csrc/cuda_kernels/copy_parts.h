// The kernel that moves strided memory, for the table.
#pragma once

#include "cuda/kernel_table.h"

namespace fvd::cuda {

int copy_parts(const CopyPart* list, std::uint32_t count, std::uint32_t tiles,
               const std::uint32_t* given_up, void* stream);
int load_copy_kernels();

}  // namespace fvd::cuda
