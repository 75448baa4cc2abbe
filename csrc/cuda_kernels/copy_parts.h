// The functions of the table, inside the extension that has the kernels.
#pragma once

#include "cuda/kernel_table.h"

namespace fvd::cuda {

int copy_parts(const CopyPart* list, std::uint32_t count, std::uint32_t tiles, void* stream);
int load_kernels();
const char* error_text(int error);

}  // namespace fvd::cuda
