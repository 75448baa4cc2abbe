// A Communicator for fastvideo_dist/nccl: memory in, calls out, no tensor and no process group.
#pragma once

#include <pybind11/pybind11.h>

#include "c10d/backend.h"
#include "c10d/host.h"

namespace fvd {

/// Adds Communicator, Transfer, create_unique_id and parse_unique_id to the module. See _C.pyi.
/// `factory` chooses the transport by the kind of device; `host` is asked for with the first call.
void bind_communicator(pybind11::module_& module, c10d_::CommunicatorFactory factory,
                       const c10d_::Host& (*host)());

}  // namespace fvd
