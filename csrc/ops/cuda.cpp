// The exchange under the key CUDA: until it has a side of its own there, one sentence that says so.
// The other collectives have theirs where they stand.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <string>

#include "ops/op_call.h"

namespace fvd::ops {
namespace {

/// The argument of a name.
const at::IValue& argument(const c10::FunctionSchema& schema, const torch::jit::Stack& stack,
                           const char* name) {
  const auto index = schema.argumentIndexWithName(name);
  TORCH_INTERNAL_ASSERT(index.has_value(), schema, " has no argument ", name);
  return torch::jit::peek(stack, static_cast<std::size_t>(*index), schema.arguments().size());
}

void refuse(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  std::string operation = schema.operator_name().name.substr(sizeof("fastvideo_dist::") - 1);
  // What users call has one name for a tensor and for several.
  if (operation == "all_to_all_4d_list") operation = "all_to_all_4d";
  const OpCall call(operation.c_str(), argument(schema, *stack, "group_name").toStringRef(),
                    argument(schema, *stack, "group_size").toInt());
  const auto& first = torch::jit::peek(*stack, 0, schema.arguments().size());
  if (first.isTensor()) c10d_::refuse_cuda(call.site(), first.toTensor(), "x");
  // In a list of several the first one on a GPU is what brought the call here.
  const auto tensors = first.toTensorVector();
  int index = 0;
  while (index + 1 < static_cast<int>(tensors.size()) && !tensors[index].is_cuda()) ++index;
  c10d_::refuse_cuda(call.site(), tensors.at(index), "x", index);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastvideo_dist, CUDA, library) {
  for (const char* name : {"all_to_all_4d", "all_to_all_4d_list"}) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse>());
  }
}

}  // namespace fvd::ops
