// fastvideo_dist._C: its classes, and which transport serves which device.
#include <pybind11/chrono.h>
#include <torch/csrc/utils/pybind.h>
#include <unistd.h>

#include <memory>
#include <mutex>

#include "bind_buffer.h"
#include "bind_communicator.h"
#include "bind_message_queue.h"
#include "c10d/backend.h"
#include "c10d/translate_errors.h"
#include "comm/env.h"
#include "comm/log.h"
#include "interpreter.h"
#include "shm/shm_communicator.h"

namespace fvd {
namespace {

using c10d_::FastVideoBackend;
using c10d_::FastVideoOptions;
using Unlocked = py::call_guard<py::gil_scoped_release>;

/// The shared-memory domain of this process, made with its first group. Not destroyed at exit, when
/// other threads may still be inside; memory and descriptors go with the process. A forked child
/// makes its own.
std::shared_ptr<shm::Domain> shm_domain() {
  static std::mutex mutex;
  static pid_t owner = 0;
  static std::shared_ptr<shm::Domain>* domain = nullptr;
  const std::lock_guard lock(mutex);
  if (domain == nullptr || owner != getpid()) {
    const auto environment = read_environment();
    set_log_level(environment.log_level);
    domain = new std::shared_ptr(shm::make_domain(environment.domain));
    owner = getpid();
  }
  return *domain;
}

/// The one place that decides which transport serves which device.
std::unique_ptr<Communicator> make_communicator(c10::DeviceType device, Store& store, int rank,
                                                int size, const GroupOptions& options) {
  FVD_CHECK(device == c10::DeviceType::CPU, kUnsupported, "fastvideo: no transport for ",
            c10::DeviceTypeName(device), " tensors; CUDA comes with the NCCL transport");
  return shm::make_communicator(shm_domain(), store, rank, size, options);
}

c10::intrusive_ptr<FastVideoBackend> make_backend(c10::intrusive_ptr<::c10d::Store> store, int rank,
                                                  int size,
                                                  c10::intrusive_ptr<FastVideoOptions> options) {
  const py::gil_scoped_release unlocked;  // the rendezvous blocks
  return c10::make_intrusive<FastVideoBackend>(std::move(store), rank, size, std::move(options),
                                               make_communicator, interpreter());
}

c10::intrusive_ptr<FastVideoOptions> copy_options(const FastVideoOptions& options) {
  return c10::make_intrusive<FastVideoOptions>(options);
}

void bind_options(py::module_& module) {
  py::class_<FastVideoOptions, ::c10d::Backend::Options, c10::intrusive_ptr<FastVideoOptions>>
      options(module, "Options", "Of one group. See _C.pyi.");
  options
      .def(py::init([](std::chrono::milliseconds timeout) {
             return c10::make_intrusive<FastVideoOptions>(timeout);
           }),
           py::arg("timeout") = kBackendDefaultTimeout)
      .def_readwrite("timeout", &FastVideoOptions::timeout)
      .def_readwrite("group_desc", &FastVideoOptions::group_desc)
      .def("__copy__", &copy_options)
      .def("__deepcopy__",
           [](const FastVideoOptions& self, const py::dict&) { return copy_options(self); })
      .def(py::pickle(
          [](const FastVideoOptions& self) {
            return py::make_tuple(self.timeout, self.group_name, self.group_desc,
                                  self.global_ranks_in_group);
          },
          [](const py::tuple& state) {
            auto self =
                c10::make_intrusive<FastVideoOptions>(state[0].cast<std::chrono::milliseconds>());
            self->group_name = state[1].cast<std::string>();
            self->group_desc = state[2].cast<std::string>();
            self->global_ranks_in_group = state[3].cast<std::vector<uint64_t>>();
            return self;
          }));
}

void refuse_mem_pool(const FastVideoBackend&, const py::args&, const py::kwargs&) {
  // RuntimeError is what callers of this NCCL feature are prepared for.
  TORCH_CHECK(false, "fastvideo: memory pools need the NCCL transport");
}

void bind_backend(py::module_& module) {
  py::class_<FastVideoBackend, ::c10d::Backend, c10::intrusive_ptr<FastVideoBackend>>(
      module, "FastVideoBackend", "The backend object of one group on one rank. See _C.pyi.")
      .def(py::init(&make_backend), py::arg("store").none(false), py::arg("rank"), py::arg("size"),
           py::arg("options").none(false))
      .def_property_readonly("options", &FastVideoBackend::options)
      .def_property(
          "bound_device_id", [](const FastVideoBackend& self) { return self.getBoundDeviceId(); },
          [](FastVideoBackend& self, std::optional<at::Device> device) {
            self.setBoundDeviceId(device);
          })
      .def("get_error", &FastVideoBackend::getError, Unlocked())
      .def("_wait_for_pending_works", &FastVideoBackend::waitForPendingWorks, Unlocked())
      // torch calls it on ranks outside a new group, without asking supports_splitting.
      .def(
          "perform_nocolor_split", [](const FastVideoBackend&, const at::Device&) {},
          py::arg("device"))
      .def("register_mem_pool", &refuse_mem_pool)
      .def("deregister_mem_pool", &refuse_mem_pool);
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["cplusplus"] = __cplusplus;
  info["transports"] = py::make_tuple("shm");
  return info;
}

}  // namespace
}  // namespace fvd

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  fvd::interpreter();
  // Registers the base classes.
  py::module_::import("torch._C._distributed_c10d");
  module.doc() = "The compiled part of fastvideo_dist. Use it through torch.distributed and ops.";
  fvd::bind_options(module);
  fvd::bind_backend(module);
  fvd::bind_message_queue(module);
  fvd::bind_buffer(module);
  fvd::bind_communicator(module, fvd::make_communicator, fvd::interpreter);
  module.def("build_info", &fvd::build_info);
}
