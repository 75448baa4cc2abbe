// What device.cpp lends compute.cpp: the memory of the fake GPUs, and their streams.
#pragma once

#include <c10/core/Stream.h>

#include <cstddef>

namespace fake_gpu {

c10::Stream current_stream(c10::Device device);

/// Returns when all that is enqueued on the current stream is done.
void wait_for_stream(c10::Device device);

/// For the current stream of `device`.
void* allocate(std::size_t bytes, c10::Device device);

/// Gives memory back in the order of `stream`, for which it was allocated, and of those on which
/// torch said that it is used.
void release(void* memory, const c10::Stream& stream);

}  // namespace fake_gpu
