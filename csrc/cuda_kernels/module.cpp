// fastvideo_dist._C_cuda: nothing but the table of kernels, for _C. Built where nvcc is.
#include <Python.h>
#include <cuda_runtime.h>

#include "cuda_kernels/copy_parts.h"
#include "cuda_kernels/rank_barrier.h"

namespace {

using fvd::cuda::KernelTable;
using fvd::cuda::kKernelTableName;
using fvd::cuda::kKernelTableVersion;

int load_kernels() {
  const int error = fvd::cuda::load_copy_kernels();
  return error != 0 ? error : fvd::cuda::load_barrier_kernel();
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

KernelTable table{kKernelTableVersion, load_kernels, fvd::cuda::copy_parts,
                  fvd::cuda::wait_for_ranks, error_text};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_C_cuda",
                          "The kernels of fastvideo_dist: KERNELS, a capsule for _C.use_kernels.",
                          0,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() {
  PyObject* module = PyModule_Create(&definition);
  if (module == nullptr) return nullptr;
  PyObject* capsule = PyCapsule_New(&table, kKernelTableName, nullptr);
  const int failed = PyModule_AddObjectRef(module, "KERNELS", capsule);
  Py_XDECREF(capsule);
  if (failed == 0) return module;
  Py_DECREF(module);
  return nullptr;
}
