// Memory of somebody in Python (a tensor, an array, anything with the buffer protocol) as the
// communicator of fastvideo_dist/nccl takes it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>

#include "comm/block_layout.h"
#include "comm/types.h"

namespace fvd {

/// Contiguous elements and what keeps them where they are. To be destroyed with the interpreter's
/// lock held.
struct Buffer {
  std::byte* data = nullptr;
  std::size_t count = 0;
  DataType type = DataType::kUInt8;
  c10::Device device{c10::DeviceType::CPU};
  bool writable = true;

  std::size_t element_bytes() const noexcept { return element_size(type); }
  std::byte* at(std::size_t element) const noexcept { return data + element * element_bytes(); }

  at::Tensor tensor;               // if it is one's
  std::shared_ptr<void> exported;  // else what Python's buffer protocol keeps
};

/// Adds Buffer, buffer_of, is_read_only, alike and apart to the module. See _C.pyi.
void bind_buffer(pybind11::module_& module);

}  // namespace fvd
