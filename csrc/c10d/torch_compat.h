// The headers of torch this room uses, and everything that differs between the supported minors
// (2.11 to 2.15). No other file of the project looks at torch's version.
//
// What needs no switch, because one spelling serves all:
//   - The collectives override the names of 2.11 (_allgather_base, alltoall_base, ...). Newer torch
//     calls all_gather_single, all_to_all_single, ..., whose base versions forward to them.
//   - Options::clone is declared virtual without `override`: torch 2.11 and 2.12 do not know it.
//   - NCCLPreMulSumSupplement is the name of 2.11; newer torch keeps it as an alias.
//   - Backend::split is asked once for each type of device that a group serves. With 2.11 and 2.12
//     all get one options object, with 2.15 each a copy; ranks are sorted before 2.15.
#pragma once

#include <c10/core/Stream.h>
#include <torch/version.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>

#if TORCH_VERSION_MAJOR != 2 || TORCH_VERSION_MINOR < 11
#error "fastvideo_dist needs torch 2.11 or newer: c10d::Backend of older versions is another class"
#endif

namespace fvd::c10d_ {

/// Whether `stream` is being captured in a graph; false where torch cannot tell, before 2.12.
template <typename DeviceGuardImpl>
bool is_capturing(const DeviceGuardImpl& device, const c10::Stream& stream) {
  if constexpr (requires { device.isStreamCapturing(stream); })
    return device.isStreamCapturing(stream);
  else
    return false;
}

}  // namespace fvd::c10d_
