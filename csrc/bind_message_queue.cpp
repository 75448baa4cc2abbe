#include "bind_message_queue.h"

#include <ATen/core/Tensor.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <chrono>
#include <cmath>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "c10d/translate_errors.h"
#include "comm/env.h"
#include "interpreter.h"
#include "shm/ring.h"

namespace fvd {
namespace {

using shm::RingCall;
using shm::RingPart;

/// Bytes with the buffer protocol, and what keeps them.
struct Memory {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
  bool readonly = false;
  std::variant<RingPart, at::Tensor, std::shared_ptr<shm::RingEnd>> owner;
};

/// From the first element to the last, in the order of the memory.
Memory memory_of(const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.device().is_cpu() && tensor.layout() == at::kStrided,
                    "memory_of: expected a dense CPU tensor, got one on ", tensor.device());
  // A DTensor, a FakeTensor: strides and a size, and behind them nothing, or something else.
  TORCH_CHECK_TYPE(
      tensor.has_storage() && !tensor.key_set().has(c10::DispatchKey::Python) &&
          (tensor.nbytes() == 0 || tensor.const_data_ptr() != nullptr),
      "memory_of: expected a tensor with memory of its own; give the plain tensor that "
      "this one wraps");
  TORCH_CHECK_VALUE(tensor.is_non_overlapping_and_dense(), "memory_of: the tensor of strides ",
                    tensor.strides(), " has gaps");
  Memory memory;
  memory.bytes = tensor.nbytes();
  memory.data = memory.bytes == 0 ? nullptr : static_cast<std::byte*>(tensor.data_ptr());
  memory.owner = tensor;
  return memory;
}

py::buffer_info exported(Memory& memory) {
  static std::byte nothing{};  // a null address is no buffer
  return {memory.bytes == 0 ? &nothing : memory.data,
          1,
          py::format_descriptor<unsigned char>::format(),
          1,
          {static_cast<py::ssize_t>(memory.bytes)},
          {1},
          memory.readonly};
}

/// Holds what a buffer of Python exports while its bytes are read without the lock.
class Borrowed {
 public:
  explicit Borrowed(const py::handle& object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  Borrowed(const Borrowed&) = delete;
  ~Borrowed() { PyBuffer_Release(&view_); }

  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
};

/// Of a part that is a whole bytes object or a view of one: it arrives as a bytes object, which
/// its readers receive in place. Short ones are not worth the interpreter's lock.
bool is_bytes(const py::handle& part, std::size_t size) {
  constexpr std::size_t kWorthIt = 64 << 10;
  PyObject* object = part.ptr();
  if (PyMemoryView_Check(object)) object = PyMemoryView_GET_BASE(object);
  return size >= kWorthIt && object != nullptr && PyBytes_CheckExact(object) &&
         static_cast<std::size_t>(PyBytes_GET_SIZE(object)) == size;
}

/// A bytes object whose content is still to come: nobody else has seen it. Released in any thread.
struct NewBytes {
  PyObject* object;

  void operator()(std::byte*) const {
    const py::gil_scoped_acquire lock;
    Py_DECREF(object);
  }
};

std::shared_ptr<std::byte> new_bytes(std::size_t size) {
  const py::gil_scoped_acquire lock;
  PyObject* object = PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(size));
  if (object == nullptr) throw py::error_already_set();
  return {reinterpret_cast<std::byte*>(PyBytes_AS_STRING(object)), NewBytes{object}};
}

/// What Python gets of a part: its bytes object, or its memory.
py::object object_of(RingPart part) {
  if (const auto* bytes = std::get_deleter<NewBytes>(part.data)) {
    return py::reinterpret_borrow<py::object>(bytes->object);
  }
  Memory memory;
  memory.data = part.data.get();
  memory.bytes = part.bytes;
  memory.owner = std::move(part);
  return py::cast(std::move(memory));
}

RingCall call_of(std::optional<double> seconds) {
  constexpr double kForever = 1e9;  // thirty years; more would not fit the clock
  RingCall call;
  call.interrupt = interpreter().interrupt_hook();
  if (seconds && std::isnan(*seconds))
    throw py::value_error("timeout is nan; give seconds or None");
  if (seconds && *seconds < kForever) {
    call.deadline = shm::Clock::now() + std::chrono::duration_cast<shm::Clock::duration>(
                                            std::chrono::duration<double>(std::max(0.0, *seconds)));
  }
  return call;
}

/// What `body` returns, without the interpreter's lock. A timeout is Python's TimeoutError, since
/// unlike one of a group it breaks nothing; everything else as docs/errors.md says.
template <typename Body>
auto queue_call(Body&& body) {
  try {
    const py::gil_scoped_release unlocked;
    return body();
  } catch (const Error& error) {
    if (error.kind() != Kind::kTimeout) c10d_::throw_translated(error);
    PyErr_SetString(PyExc_TimeoutError, error.what());
    throw py::error_already_set();
  }
}

std::chrono::microseconds spin_time() {
  static const auto spin = read_environment().domain.spin_us;
  return spin;
}

std::shared_ptr<shm::RingWriter> make_writer(const std::string& name, std::int64_t readers,
                                             std::int64_t slots, std::int64_t slot_bytes) {
  return queue_call([&] {
    // What is negative becomes too large, and is refused as that.
    const shm::RingOptions options{name, static_cast<std::uint64_t>(readers),
                                   static_cast<std::uint64_t>(slots),
                                   static_cast<std::uint64_t>(slot_bytes)};
    return std::make_shared<shm::RingWriter>(shm::RingMemory::create(options), spin_time());
  });
}

std::shared_ptr<shm::RingReader> make_reader(const std::string& address, int reader) {
  return queue_call([&] {
    auto memory = shm::RingMemory::attach(shm::RingAddress::parse(address));
    return std::make_shared<shm::RingReader>(std::move(memory), reader, spin_time());
  });
}

void write(shm::RingWriter& self, const py::sequence& parts, std::optional<double> timeout) {
  const RingCall call = call_of(timeout);
  std::vector<std::unique_ptr<Borrowed>> borrowed;
  std::vector<std::span<const std::byte>> spans;
  std::vector<bool> marked;
  for (const py::handle part : parts) {
    borrowed.push_back(std::make_unique<Borrowed>(part));
    spans.push_back(borrowed.back()->bytes());
    marked.push_back(is_bytes(part, spans.back().size()));
  }
  queue_call([&] { self.write(spans, call, marked); });
}

py::list read(shm::RingReader& self, std::optional<double> timeout) {
  const RingCall call = call_of(timeout);
  auto parts = queue_call([&] { return self.read(call, &new_bytes); });
  py::list result;
  for (RingPart& part : parts) result.append(object_of(std::move(part)));
  return result;
}

Memory writers_chunk(const std::shared_ptr<shm::RingWriter>& self, std::optional<double> timeout) {
  const RingCall call = call_of(timeout);
  const auto chunk = queue_call([&] { return self->begin_raw(call); });
  return {chunk.data(), chunk.size(), false, self};
}

Memory readers_chunk(const std::shared_ptr<shm::RingReader>& self, std::optional<double> timeout) {
  const RingCall call = call_of(timeout);
  const auto chunk = queue_call([&] { return self->begin_raw(call); });
  // The kernel refuses a write there; so does Python, first.
  return {const_cast<std::byte*>(chunk.data()), chunk.size(), true, self};
}

template <typename End>
void wait_until_ready(End& self, std::optional<double> timeout) {
  const RingCall call = call_of(timeout);
  queue_call([&] { self.wait_until_ready(call); });
}

template <typename End>
void close_end(End& self) {
  const py::gil_scoped_release unlocked;
  self.close();
}

}  // namespace

void bind_message_queue(py::module_& module) {
  py::class_<Memory>(module, "Memory", py::buffer_protocol(), "Bytes in memory. See _C.pyi.")
      .def_buffer(&exported);
  module.def("memory_of", &memory_of, py::arg("tensor"));
  py::class_<shm::RingWriter, std::shared_ptr<shm::RingWriter>>(
      module, "QueueWriter", "The writing end of a message queue. See _C.pyi.")
      .def(py::init(&make_writer), py::arg("name"), py::arg("readers"), py::arg("chunks"),
           py::arg("chunk_bytes"))
      .def_property_readonly(
          "address",
          [](const shm::RingWriter& self) { return py::bytes(self.address().serialize()); })
      .def("write", &write, py::arg("parts"), py::arg("timeout"))
      .def("begin_raw", &writers_chunk, py::arg("timeout"))
      .def(
          "end_raw",
          [](shm::RingWriter& self, bool publish) { queue_call([&] { self.end_raw(publish); }); },
          py::arg("publish"))
      .def("wait_until_ready", &wait_until_ready<shm::RingWriter>, py::arg("timeout"))
      .def("close", &close_end<shm::RingWriter>);
  py::class_<shm::RingReader, std::shared_ptr<shm::RingReader>>(
      module, "QueueReader", "One reading end of a message queue. See _C.pyi.")
      .def(py::init(&make_reader), py::arg("address"), py::arg("reader"))
      .def("read", &read, py::arg("timeout"))
      .def("begin_raw", &readers_chunk, py::arg("timeout"))
      .def("end_raw", [](shm::RingReader& self) { queue_call([&] { self.end_raw(); }); })
      .def("wait_until_ready", &wait_until_ready<shm::RingReader>, py::arg("timeout"))
      .def("close", &close_end<shm::RingReader>);
}

}  // namespace fvd
