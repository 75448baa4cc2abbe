// Binding of the kernel that copies strided memory, for benchmarks and tests on a GPU.
#pragma once

#include <pybind11/pybind11.h>

namespace fvd {

void bind_copy(pybind11::module_& module);

}  // namespace fvd
