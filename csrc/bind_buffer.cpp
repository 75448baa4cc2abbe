#include "bind_buffer.h"

#include <ATen/dlpack.h>
#include <ATen/ops/from_blob.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>

#include "c10d/tensor_view.h"
#include "comm/error.h"

namespace fvd {
namespace {

/// The types NCCL has, and bool, which travels as uint8.
constexpr at::ScalarType kScalarTypes[] = {
    at::kBool,   at::kByte,          at::kChar,       at::kUInt32,   at::kInt,
    at::kUInt64, at::kLong,          at::kHalf,       at::kBFloat16, at::kFloat,
    at::kDouble, at::kFloat8_e4m3fn, at::kFloat8_e5m2};

std::optional<DataType> type_of(at::ScalarType type) {
  if (std::ranges::find(kScalarTypes, type) == std::end(kScalarTypes)) return std::nullopt;
  return c10d_::data_type(type);
}

at::ScalarType scalar_type_of(DataType type) {
  for (const auto candidate : kScalarTypes) {
    if (type_of(candidate) == type) return candidate;
  }
  return at::kByte;
}

std::optional<DataType> type_called(std::string_view wanted) {
  for (const auto candidate : kScalarTypes) {
    if (name(*type_of(candidate)) == wanted) return type_of(candidate);
  }
  return std::nullopt;
}

/// The first element.
at::Scalar first(const Buffer& buffer) {
  if (buffer.tensor.defined()) return buffer.tensor.flatten()[0].item();
  return at::from_blob(buffer.data, {1}, scalar_type_of(buffer.type)).item();
}

/// Of a format of Python's struct module, such as "<f": one native element and nothing else.
std::optional<DataType> type_of(std::string_view format, py::ssize_t bytes) {
  if (!format.empty() && (format[0] == '@' || format[0] == '=' || format[0] == '<')) {
    format.remove_prefix(1);  // this machine is little-endian
  }
  if (format.size() != 1) return std::nullopt;
  switch (format[0]) {
    case '?':
      return DataType::kBool;
    case 'b':
      return DataType::kInt8;
    case 'B':
      return DataType::kUInt8;
    case 'i':
    case 'l':
    case 'q':
      if (bytes == 8) return DataType::kInt64;
      return bytes == 4 ? std::optional(DataType::kInt32) : std::nullopt;
    case 'I':
    case 'L':
    case 'Q':
      if (bytes == 8) return DataType::kUInt64;
      return bytes == 4 ? std::optional(DataType::kUInt32) : std::nullopt;
    case 'e':
      return DataType::kFloat16;
    case 'f':
      return DataType::kFloat32;
    case 'd':
      return DataType::kFloat64;
    default:
      return std::nullopt;
  }
}

[[noreturn]] void refuse_type(const std::string& type) {
  throw py::type_error("has dtype " + type +
                       ", which NCCL does not know; it has int8, uint8, int32, uint32, int64, "
                       "uint64, float16, bfloat16, float32, float64, float8_e4m3fn, float8_e5m2. "
                       "To move other elements, view them as one of these");
}

Buffer of_tensor(const at::Tensor& tensor) {
  Buffer buffer;
  if (tensor.layout() != at::kStrided || tensor.is_nested() || tensor.is_quantized()) {
    throw py::type_error("is no dense tensor");
  }
  buffer.device = tensor.device();
  if (!buffer.device.is_cpu() && !buffer.device.is_cuda()) {
    throw py::type_error("is on " + buffer.device.str() + ", whose memory cannot be reached");
  }
  const auto type = type_of(tensor.scalar_type());
  if (!type) refuse_type(c10::toString(tensor.scalar_type()));
  // A negated view has other values than its memory.
  if (!tensor.is_contiguous() || tensor.is_neg() || tensor._is_zerotensor()) {
    throw py::value_error(text("is not contiguous: shape ", tensor.sizes(), ", strides ",
                               tensor.strides(), "; pass tensor.contiguous()"));
  }
  buffer.type = *type;
  buffer.count = static_cast<std::size_t>(tensor.numel());
  buffer.data = static_cast<std::byte*>(const_cast<void*>(tensor.const_data_ptr()));
  buffer.tensor = tensor;
  return buffer;
}

struct Exported {
  Py_buffer view{};
  ~Exported() { PyBuffer_Release(&view); }
};

/// Nothing if the object does not export its memory. `dtype`: what the elements are, if the object
/// does not know itself.
std::optional<Buffer> of_exporter(const py::handle& object,
                                  const std::optional<std::string>& dtype) {
  auto exported = std::make_shared<Exported>();
  Py_buffer& view = exported->view;
  if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_RECORDS_RO) != 0) {
    PyErr_Clear();
    return std::nullopt;
  }
  const std::string format = view.format == nullptr ? "B" : view.format;
  const auto type = dtype ? type_called(*dtype) : type_of(format, view.itemsize);
  if (!type) refuse_type("\"" + format + "\" (as the module struct writes it)");
  if (PyBuffer_IsContiguous(&view, 'C') == 0) {
    throw py::value_error(text("is not contiguous: ", view.ndim,
                               " dimensions with gaps or in another order than C's; pass "
                               "numpy.ascontiguousarray(...)"));
  }
  Buffer buffer;
  buffer.type = *type;
  buffer.count = static_cast<std::size_t>(view.len / view.itemsize);
  buffer.data = static_cast<std::byte*>(view.buf);
  buffer.writable = view.readonly == 0;
  buffer.exported = std::move(exported);
  return buffer;
}

/// `wants`: the buffer is to be written.
std::optional<Buffer> buffer_of(const py::handle& object, bool wants,
                                const std::optional<std::string>& dtype) {
  std::optional<Buffer> buffer;
  if (THPVariable_Check(object.ptr())) {
    buffer = of_tensor(THPVariable_Unpack(object.ptr()));
    // As every in-place operation of torch, so that autograd notices.
    if (wants && !buffer->tensor.is_inference()) {
      buffer->tensor.unsafeGetTensorImpl()->bump_version();
    }
  } else if (PyObject_CheckBuffer(object.ptr()) != 0) {
    buffer = of_exporter(object, dtype);
  }
  if (buffer && wants && !buffer->writable) {
    throw py::value_error("is read-only, and the result belongs there");
  }
  return buffer;
}

/// Whether the first `part_count` elements of `part` and the first `whole_count` of `whole` share
/// no memory, or begin at the one element of `whole` where in-place operation is defined.
bool apart(const Buffer& part, std::size_t part_count, const Buffer& whole, std::size_t whole_count,
           std::optional<std::size_t> in_place) {
  if (part.device != whole.device || part_count == 0 || whole_count == 0) return true;
  if (in_place && part.data == whole.at(*in_place)) return true;
  return part.at(part_count) <= whole.data || whole.at(whole_count) <= part.data;
}

/// Whether a capsule of DLPack says so; those before its version 1.0 cannot. torch does not look.
bool is_read_only(const py::capsule& capsule) {
  if (capsule.name() == nullptr || std::string_view(capsule.name()) != "dltensor_versioned") {
    return false;
  }
  const auto* tensor = capsule.get_pointer<DLManagedTensorVersioned>();
  return (tensor->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0;
}

/// Whether one may be copied or reduced into the other.
bool alike(const Buffer& a, const Buffer& b) { return a.type == b.type && a.device == b.device; }

}  // namespace

void bind_buffer(py::module_& module) {
  py::class_<Buffer>(module, "Buffer", "Contiguous elements in memory. See _C.pyi.")
      .def_readonly("count", &Buffer::count)
      .def_property_readonly("dtype", [](const Buffer& self) { return name(self.type); })
      .def_property_readonly("is_cpu", [](const Buffer& self) { return self.device.is_cpu(); })
      .def_property_readonly("device", [](const Buffer& self) { return self.device; })
      .def("first", &first);
  module.def("buffer_of", &buffer_of, py::arg("object"), py::arg("wants"),
             py::arg("dtype") = py::none());
  module.def("is_read_only", &is_read_only, py::arg("capsule"));
  module.def("alike", &alike, py::arg("a"), py::arg("b"));
  module.def("apart", &apart, py::arg("part"), py::arg("part_count"), py::arg("whole"),
             py::arg("whole_count"), py::arg("in_place"));
}

}  // namespace fvd
