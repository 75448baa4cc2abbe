// fastvideo_dist._C: its classes, and which transport serves which device.
#include <pybind11/chrono.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "bind_buffer.h"
#include "bind_communicator.h"
#include "bind_copy.h"
#include "bind_message_queue.h"
#include "c10d/backend.h"
#include "c10d/lookup.h"
#include "c10d/translate_errors.h"
#include "comm/env.h"
#include "comm/log.h"
#include "cuda/kernels.h"
#include "interpreter.h"
#include "nccl/nccl_communicator.h"
#include "shm/shm_communicator.h"

namespace fvd {
namespace {

using c10d_::FastVideoBackend;
using c10d_::FastVideoOptions;
using Unlocked = py::call_guard<py::gil_scoped_release>;

/// Read when the first group is made.
const Environment& environment() {
  static const auto* read = [] {
    auto* environment = new Environment(read_environment());
    set_log_level(environment->log_level);
    return environment;
  }();
  return *read;
}

/// The shared-memory domain of this process, made with its first group. Not destroyed at exit, when
/// other threads may still be inside; memory and descriptors go with the process. A forked child
/// makes its own.
std::shared_ptr<shm::Domain> shm_domain() {
  static std::mutex mutex;
  static pid_t owner = 0;
  static std::shared_ptr<shm::Domain>* domain = nullptr;
  const std::lock_guard lock(mutex);
  if (domain == nullptr || owner != getpid()) {
    domain = new std::shared_ptr(shm::make_domain(environment().domain));
    owner = getpid();
  }
  return *domain;
}

/// The folder torch is installed in, where NVIDIA's wheels are its neighbours. Found when this
/// module is loaded, which is the last time that Python may be asked.
std::string& wheels() {
  static auto* const folder = new std::string;
  return *folder;
}

/// NCCL and CUDA, found by the first group that needs them. What fails is tried again. `wanted`:
/// this file and no other; not empty.
const nccl::Libraries& libraries_from(const std::optional<std::string>& wanted) {
  static std::mutex mutex;
  static nccl::Libraries* found = nullptr;
  const std::lock_guard lock(mutex);
  if (found == nullptr) {
    auto options = environment().nccl;
    if (wanted.has_value()) options.library = *wanted;
    options.wheels = wheels();
    found = new nccl::Libraries(nccl::load_libraries(options));
    found->kernels = cuda::block_kernels();
    log(LogLevel::kInfo, text("NCCL ", nccl::version_text(found->nccl.version), " from ",
                              found->nccl.path, ", CUDA from ", found->cuda.path));
  }
  std::error_code unreadable;
  FVD_CHECK(
      !wanted.has_value() || std::filesystem::equivalent(*wanted, found->nccl.path, unreadable),
      kInvalidArgument, "fastvideo: the NCCL library ", wanted.value_or(""),
      " was asked for, but this process uses ", found->nccl.path,
      " already, and one process has one; ask for none, or for it before the first group, or "
      "by FASTVIDEO_DIST_NCCL_LIBRARY");
  return *found;
}

nccl::Libraries nccl_libraries() { return libraries_from(std::nullopt); }

/// The one place that decides which transport serves which device.
std::unique_ptr<Communicator> make_communicator(c10::Device device, std::shared_ptr<Store> store,
                                                int rank, int size, const GroupOptions& options) {
  auto cpu = shm::make_communicator(shm_domain(), *store, rank, size, options);
  if (device.is_cpu()) return cpu;
  nccl::NcclGroupOptions gpu;
  gpu.group = options;
  gpu.device = device.index();
  gpu.check = environment().nccl.check;
  gpu.push = environment().nccl.push;
  cuda::load_kernels();  // the device is the current one
  return nccl::make_communicator(nccl_libraries, std::move(store), std::move(cpu), gpu);
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
  TORCH_CHECK(false, "fastvideo: memory pools cannot be registered with NCCL in this version");
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

py::tuple load_nccl(const std::optional<std::string>& path) {
  return c10d_::translated([&] {
    const auto& loaded = [&]() -> const nccl::Libraries& {
      const py::gil_scoped_release unlocked;
      return libraries_from(path);
    }();
    return py::make_tuple(nccl::version_text(loaded.nccl.version), loaded.nccl.path);
  });
}

std::uintptr_t current_stream(const at::Device& device) {
  return reinterpret_cast<std::uintptr_t>(c10d_::native(c10d_::current_stream(device)).handle);
}

std::string exchange_path(const std::string& group_name) {
  return c10d_::find_backend(group_name)->exchange_path();
}

/// Takes the table out of the capsule that `_C_cuda` offers, or notes why there is none.
void use_kernels(const std::optional<py::capsule>& kernels, const std::string& reason) {
  if (!kernels.has_value()) return cuda::use_no_kernels(reason);
  const auto* table = static_cast<const cuda::KernelTable*>(
      PyCapsule_GetPointer(kernels->ptr(), cuda::kKernelTableName));
  if (table == nullptr) throw py::error_already_set();
  c10d_::translated([&] { cuda::use_kernels(table); });
}

void find_wheels() {
  const py::list folders(py::module_::import("torch").attr("__path__"));
  const auto torch = folders[0].cast<std::string>();
  wheels() = torch.substr(0, torch.rfind('/'));
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["cplusplus"] = __cplusplus;
  info["transports"] = py::make_tuple("shm", "nccl");
  return info;
}

}  // namespace
}  // namespace fvd

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  fvd::interpreter();
  // Registers the base classes.
  py::module_::import("torch._C._distributed_c10d");
  fvd::find_wheels();
  module.doc() = "The compiled part of fastvideo_dist. Use it through torch.distributed and ops.";
  fvd::bind_options(module);
  fvd::bind_backend(module);
  fvd::bind_message_queue(module);
  fvd::bind_buffer(module);
  fvd::bind_copy(module);
  fvd::bind_communicator(module, fvd::make_communicator, fvd::interpreter);
  module.def("load_nccl", &fvd::load_nccl, py::arg("path") = std::nullopt);
  module.def("current_stream", &fvd::current_stream, py::arg("device"));
  module.def("exchange_path", &fvd::exchange_path, py::arg("group_name"));
  module.def("use_kernels", &fvd::use_kernels, py::arg("kernels"), py::arg("reason") = "",
             "The capsule _C_cuda.KERNELS; None: there are no kernels, for this reason.");
  module.def("build_info", &fvd::build_info);
}
