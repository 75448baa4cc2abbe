#include "c10d/tensor_view.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "comm/error.h"

namespace fvd::c10d_ {

std::optional<DataType> data_type(at::ScalarType type) {
  switch (type) {
    case at::kBool:
      return DataType::kBool;
    case at::kByte:
      return DataType::kUInt8;
    case at::kChar:
      return DataType::kInt8;
    case at::kUInt16:
      return DataType::kUInt16;
    case at::kShort:
      return DataType::kInt16;
    case at::kUInt32:
      return DataType::kUInt32;
    case at::kInt:
      return DataType::kInt32;
    case at::kUInt64:
      return DataType::kUInt64;
    case at::kLong:
      return DataType::kInt64;
    case at::kHalf:
      return DataType::kFloat16;
    case at::kBFloat16:
      return DataType::kBFloat16;
    case at::kFloat:
      return DataType::kFloat32;
    case at::kDouble:
      return DataType::kFloat64;
    case at::kComplexHalf:
      return DataType::kComplex32;
    case at::kComplexFloat:
      return DataType::kComplex64;
    case at::kComplexDouble:
      return DataType::kComplex128;
    case at::kFloat8_e4m3fn:
      return DataType::kFloat8E4M3FN;
    case at::kFloat8_e5m2:
      return DataType::kFloat8E5M2;
    case at::kFloat8_e4m3fnuz:
      return DataType::kFloat8E4M3FNUZ;
    case at::kFloat8_e5m2fnuz:
      return DataType::kFloat8E5M2FNUZ;
    case at::kFloat8_e8m0fnu:
      return DataType::kFloat8E8M0FNU;
    default:
      return std::nullopt;  // quantised, sub-byte and bits types
  }
}

namespace {

std::string argument(const char* what, int index) {
  return index < 0 ? std::string(what) : text(what, "[", index, "]");
}

void check_kind(const Site& site, const at::Tensor& tensor, const char* what, int index) {
  TORCH_CHECK_TYPE(tensor.defined(), site.prefix(), argument(what, index),
                   " is no tensor (undefined)");
  TORCH_CHECK_NOT_IMPLEMENTED(!tensor.is_cuda() || site.memory != nullptr, site.prefix(),
                              argument(what, index), " is on ", tensor.device(),
                              "; this call is for tensors on the CPU");
  TORCH_CHECK_TYPE(tensor.layout() == at::kStrided && !tensor.is_nested(), site.prefix(),
                   argument(what, index), " has layout ", tensor.layout(),
                   tensor.is_nested() ? " (nested)" : "", "; only dense tensors can be sent");
  TORCH_CHECK_TYPE(tensor.is_cpu() || tensor.is_cuda(), site.prefix(), argument(what, index),
                   " is on ", tensor.device(), ", which has no memory this backend can reach");
  TORCH_CHECK_TYPE(!tensor.is_quantized(), site.prefix(), argument(what, index),
                   " is quantised; send its int_repr() and the scales");
}

void check_device(const Site& site, const at::Tensor& tensor, const char* what, int index) {
  if (site.memory == nullptr) return;
  CallMemory& call = *site.memory;
  const auto device = tensor.device();
  TORCH_CHECK_VALUE(!call.any || call.device == device, site.prefix(), argument(what, index),
                    " is on ", device, " but another tensor of this call is on ", call.device,
                    "; all must be on one device");
  call.any = true;
  call.device = device;
}

// Lazily conjugated, negated and all-zero tensors have other values than their memory shows.
bool memory_is_value(const at::Tensor& tensor) {
  return !tensor.is_conj() && !tensor.is_neg() && !tensor._is_zerotensor();
}

at::Tensor staged(const at::Tensor& tensor, bool with_values) {
  // Staging is no step of anybody's computation: autograd must neither record nor refuse it.
  const at::AutoDispatchBelowADInplaceOrView guard;
  auto copy = at::empty(tensor.sizes(), tensor.options());
  if (with_values) copy.copy_(tensor);
  return copy;
}

bool share_memory(const TensorView& a, const TensorView& b) {
  return a.data < b.data + b.bytes && b.data < a.data + a.bytes;
}

}  // namespace

std::string Site::prefix() const {
  return text("fastvideo: ", operation, " on group \"", group, "\", rank ", rank, ": ");
}

TensorView view(const Site& site, const at::Tensor& tensor, Access access, const char* what,
                int index) {
  check_kind(site, tensor, what, index);
  check_device(site, tensor, what, index);
  const auto type = data_type(tensor.scalar_type());
  TORCH_CHECK_TYPE(type.has_value(), site.prefix(), argument(what, index), " has dtype ",
                   tensor.scalar_type(), ", which this backend does not know");
  TensorView result;
  result.type = *type;
  result.memory = tensor;
  const bool reads = access == Access::kRead || access == Access::kReadStrided;
  const bool any_strides = access == Access::kReadStrided;
  if (!memory_is_value(tensor) || !(any_strides || tensor.is_contiguous())) {
    if (!reads) {
      TORCH_CHECK_VALUE(at::has_internal_overlap(tensor) != at::MemOverlap::Yes, site.prefix(),
                        argument(what, index), " of shape ", tensor.sizes(), " and strides ",
                        tensor.strides(),
                        " keeps several elements in one place; clone() it before writing to it");
      result.target = tensor;
    }
    result.memory = staged(tensor, access != Access::kWrite);
  }
  result.bytes = result.memory.nbytes();
  if (!tensor.is_cpu()) {
    result.call = site.memory;
    result.call->tensors.push_back(result.memory);
    if (result.target.defined()) result.call->tensors.push_back(result.target);
  }
  if (reads) {
    result.data = static_cast<std::byte*>(const_cast<void*>(result.memory.const_data_ptr()));
  } else {
    result.data = static_cast<std::byte*>(result.memory.mutable_data_ptr());
  }
  TORCH_CHECK_TYPE(result.data != nullptr || result.bytes == 0, site.prefix(),
                   argument(what, index), " has no memory: it is fake, as under tracing");
  if (!reads && !tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
  return result;
}

std::vector<TensorView> views(const Site& site, const std::vector<at::Tensor>& tensors,
                              Access access, const char* what) {
  std::vector<TensorView> result;
  result.reserve(tensors.size());
  for (const auto& tensor : tensors)
    result.push_back(view(site, tensor, access, what, static_cast<int>(result.size())));
  return result;
}

void TensorView::copy_back() const {
  if (!target.defined()) return;
  const at::AutoDispatchBelowADInplaceOrView guard;
  target.copy_(memory);
}

void check_disjoint(const Site& site, const std::vector<TensorView>& outputs, const char* what) {
  std::vector<std::size_t> order;
  order.reserve(outputs.size());
  for (std::size_t i = 0; i < outputs.size(); ++i)
    if (outputs[i].bytes > 0) order.push_back(i);
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return outputs[a].data < outputs[b].data; });
  for (std::size_t i = 1; i < order.size(); ++i)
    TORCH_CHECK_VALUE(!share_memory(outputs[order[i - 1]], outputs[order[i]]), site.prefix(), what,
                      "[", order[i - 1], "] and ", what, "[", order[i],
                      "] share memory; each must be a tensor of its own");
}

void separate(TensorView& input, const TensorView& output, bool in_place_allowed) {
  if (!share_memory(input, output)) return;
  if (in_place_allowed && input.data == output.data && input.bytes == output.bytes) return;
  input.memory = staged(input.memory, true);
  if (input.call != nullptr) input.call->tensors.push_back(input.memory);
  input.data = static_cast<std::byte*>(input.memory.mutable_data_ptr());
}

void check_same_type(const Site& site, const TensorView& a, const char* a_name, const TensorView& b,
                     const char* b_name) {
  TORCH_CHECK_VALUE(a.type == b.type, site.prefix(), a_name, " has dtype ", name(a.type), " but ",
                    b_name, " has dtype ", name(b.type), "; they must be equal");
}

}  // namespace fvd::c10d_
