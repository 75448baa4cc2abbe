// Memory of the fake GPUs, and a processor that computes with it: an op of torch on such tensors
// runs on the CPU over the same memory, once the current stream has come to it. Memory is given
// back in the order of the stream it was allocated on, and of those torch was told about, as by
// torch's own allocator: who forgets to tell is found by AddressSanitizer or by wrong numbers.
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/from_blob.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "gpu_fakes/device.h"

namespace fake_gpu {
namespace {

using Stack = torch::jit::Stack;

at::Tensor on_host(const at::Tensor& x) {
  if (!x.defined() || !x.is_cuda()) return x;
  return at::for_blob(x.data_ptr(), x.sizes())
      .strides(x.strides())
      .deleter([x](void*) {})
      .options(x.options().device(at::kCPU))
      .make_tensor();
}

at::Tensor tensor_as(const at::Tensor& like, c10::Device device) {
  void* const memory = allocate(like.nbytes(), device);
  const auto stream = current_stream(device);
  return at::for_blob(memory, like.sizes())
      .strides(like.strides())
      .deleter([stream](void* data) { release(data, stream); })
      .options(like.options().device(device))
      .target_device(device)
      .make_tensor();
}

/// The device of the first tensor on a GPU, or the one that is asked for by name.
std::optional<c10::Device> device_of(const Stack& stack, std::size_t first) {
  for (std::size_t i = first; i < stack.size(); ++i) {
    if (stack[i].isTensor() && stack[i].toTensor().defined() && stack[i].toTensor().is_cuda())
      return stack[i].toTensor().device();
    if (stack[i].isTensorList()) {
      for (const at::Tensor& x : stack[i].toTensorVector())
        if (x.is_cuda()) return x.device();
    }
    if (stack[i].isDevice() && stack[i].toDevice().is_cuda()) {
      const auto device = stack[i].toDevice();
      return c10::Device(at::kCUDA, device.has_index() ? device.index() : c10::DeviceIndex{0});
    }
  }
  return std::nullopt;
}

void move_arguments_to_host(Stack& stack, std::size_t first) {
  for (std::size_t i = first; i < stack.size(); ++i) {
    if (stack[i].isTensor()) stack[i] = on_host(stack[i].toTensor());
    if (stack[i].isTensorList()) {
      std::vector<at::Tensor> list;
      for (const at::Tensor& x : stack[i].toTensorVector()) list.push_back(on_host(x));
      stack[i] = list;
    }
    if (stack[i].isDevice()) stack[i] = c10::Device(at::kCPU);
  }
}

void compute(const c10::OperatorHandle& op, Stack* stack) {
  const auto& schema = op.schema();
  const std::size_t first = stack->size() - schema.arguments().size();
  const auto device = device_of(*stack, first);
  TORCH_CHECK(device.has_value(), schema.name(), " has no argument on a GPU");
  // To allocate waits for nobody; a capture may do it.
  if (schema.name().rfind("aten::empty", 0) != 0) wait_for_stream(*device);
  const c10::IValue self = (*stack)[first];
  const bool in_place = !schema.returns().empty() && schema.returns()[0].alias_info() != nullptr;
  move_arguments_to_host(*stack, first);
  op.callBoxed(stack);
  if (in_place) {
    stack->resize(first);
    stack->push_back(self);
    return;
  }
  for (std::size_t i = first; i < stack->size(); ++i) {
    if (!(*stack)[i].isTensor()) continue;
    const at::Tensor result = (*stack)[i].toTensor();
    at::Tensor there = tensor_as(result, *device);
    if (schema.name().rfind("aten::empty", 0) != 0) on_host(there).copy_(result);
    (*stack)[i] = std::move(there);
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  for (const char* op : {"empty.memory_format",
                         "empty_strided",
                         "copy_",
                         "fill_.Scalar",
                         "zero_",
                         "add.Tensor",
                         "sub.Tensor",
                         "mul.Tensor",
                         "div.Tensor",
                         "neg",
                         "sin",
                         "cos",
                         "cat",
                         "sum",
                         "sum.dim_IntList",
                         "eq.Tensor",
                         "eq.Scalar",
                         "all",
                         "equal",
                         "_local_scalar_dense",
                         "mm",
                         "addmm"}) {
    library.impl(op, torch::CppFunction::makeFromBoxedFunction<&compute>());
  }
}

}  // namespace fake_gpu
