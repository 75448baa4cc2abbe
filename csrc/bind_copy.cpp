#include "bind_copy.h"

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/utils/pybind.h>

#include <vector>

#include "c10d/translate_errors.h"
#include "cuda/kernels.h"

namespace fvd {
namespace {

/// See _C.pyi.
void copy_on_gpu(const std::vector<at::Tensor>& sources, const std::vector<at::Tensor>& targets) {
  TORCH_CHECK_VALUE(sources.size() == targets.size(), "copy_on_gpu: there are ", sources.size(),
                    " sources but ", targets.size(), " targets");
  if (sources.empty()) return;
  const auto device = targets[0].device();
  cuda::CopyPlan plan;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const auto& from = sources[i];
    const auto& to = targets[i];
    TORCH_CHECK_VALUE(device.is_cuda() && from.device() == device && to.device() == device,
                      "copy_on_gpu: a tensor of pair ", i, " is on ", from.device(), " or ",
                      to.device(), "; all must be on one GPU");
    TORCH_CHECK_VALUE(from.sizes() == to.sizes() && from.scalar_type() == to.scalar_type(),
                      "copy_on_gpu: pair ", i, " has shapes ", from.sizes(), " and ", to.sizes(),
                      ", dtypes ", from.scalar_type(), " and ", to.scalar_type(),
                      "; they must be equal");
    plan.add({from.const_data_ptr(), to.mutable_data_ptr(), from.sizes(), from.strides(),
              to.strides(), static_cast<std::size_t>(from.element_size())});
  }
  const c10::DeviceGuard guard(device);
  const auto stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device);
  c10d_::translated([&] { cuda::enqueue(plan, {stream.native_handle()}); });
}

}  // namespace

void bind_copy(pybind11::module_& module) {
  module.def("copy_on_gpu", &copy_on_gpu, pybind11::arg("sources"), pybind11::arg("targets"),
             pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace fvd
