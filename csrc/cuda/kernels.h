// The kernels this process has, and how plans are run on them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "comm/types.h"
#include "cuda/copy_plan.h"
#include "cuda/kernel_table.h"
#include "nccl/block_kernels.h"

namespace fvd::cuda {

/// Before the first group is made. `table` stays valid until the process ends.
/// @throws Error(kUnsupported) for a table of another version
void use_kernels(const KernelTable* table);

/// There are none; `reason` is for messages.
void use_no_kernels(const std::string& reason);

/// Why there are none and what to do; nothing if there are some.
std::optional<std::string> why_no_kernels();

/// Has the current device load them, if there are some: before calls of other ranks run on it that
/// loading would wait for. What fails here fails again, and is told, where a kernel is needed.
void load_kernels() noexcept;

/// Enqueues all copies on `stream`, which is one of the current device. `given_up`: as
/// Reached::given_up, or null.
/// @throws Error(kUnsupported) without kernels, Error(kLibrary) if CUDA fails
void enqueue(const CopyPlan& plan, Stream stream, const std::uint32_t* given_up = nullptr);

/// For the transport: its staging of strided blocks, and waits of ranks on the device. Empty if
/// there are none.
nccl::BlockKernels block_kernels();

}  // namespace fvd::cuda
