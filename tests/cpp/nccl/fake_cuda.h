// A CUDA runtime over host memory: streams are threads that work off what is enqueued, so that what
// a stream does really comes later than the call, and orders that are wrong show.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "nccl/block_kernels.h"
#include "nccl/cuda_api.h"

namespace fvd::test {

/// The table. All calls of this process act on the same devices; each device has a null stream.
nccl::CudaApi fake_cuda();

/// Kernels that copy runs, in the order of the stream.
nccl::BlockKernels fake_kernels();

/// Has `work` done in the order of `stream` (null: that of the calling thread's device). For the
/// fake of NCCL. While it runs it may block.
void enqueue_on(nccl::CudaStream stream, std::function<void()> work);

/// What the calling thread does to `stream` counts as captured from here on, until called again
/// with false: it still runs, which is enough to see who asks what.
void set_capturing(nccl::CudaStream stream, bool capturing);

/// From here on an event query by a thread without relaxed rules fails while anybody captures, as
/// it does in CUDA.
void set_strict_captures(bool strict);

/// The graphs of all captures so far go, and so do what was instantiated from them.
void destroy_graphs();

/// Number of event queries since the process began, of all threads.
long event_queries();

/// Calls of cudaSetDevice since the process began, of all threads.
long device_switches();

/// Device memory that was allocated and not given back.
long allocations();

/// Makes the next event query report `result`.
void fail_next_query(nccl::CudaResult result);

}  // namespace fvd::test
