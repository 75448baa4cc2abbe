// The ring of csrc/shm/ring.h for fastvideo_dist/message_queue.py, and memory for serialize.py.
#pragma once

#include <pybind11/pybind11.h>

namespace fvd {

/// Adds Memory, memory_of, QueueWriter and QueueReader to the module. See _C.pyi.
void bind_message_queue(pybind11::module_& module);

}  // namespace fvd
