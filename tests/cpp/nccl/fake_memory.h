// Device memory of the fake CUDA runtime: which allocation an address belongs to, and how other
// ranks open one. Between threads an open allocation is the same memory; between processes it is
// mapped a second time.
#pragma once

#include <cstddef>
#include <cstdint>

#include "nccl/abi.h"

namespace fvd::test {

/// Null if there is none.
void* allocate_memory(std::size_t bytes);
void free_memory(void* data);

/// As in CUDA; `device` is the one that opens it.
nccl::CudaResult ipc_get_handle(nccl::IpcHandle* handle, void* data);
nccl::CudaResult ipc_open_handle(void** data, nccl::IpcHandle handle, int device);
nccl::CudaResult ipc_close_handle(void* data, int device);
nccl::CudaResult pointer_attributes(unsigned count, const nccl::PointerAttribute* which,
                                    void** values, std::uintptr_t address);

/// From here on allocations may be opened by other processes of the user.
void share_memory_between_processes();

/// Faults. What lies in `data`'s allocation cannot be opened by others, or can again; nothing can
/// be opened on a device (-1: on all it can).
void set_shareable(void* data, bool shareable);
void refuse_to_open_on(int device);

/// Allocations that this process has open, counted as often as they are; and calls that tried to.
long open_memory();
long attempts_to_open();

}  // namespace fvd::test
