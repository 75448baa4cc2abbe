// Every check of a tensor, and the step from a tensor to memory a transport can move.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/block_layout.h"
#include "comm/types.h"

namespace fvd::c10d_ {

/// Nothing for quantised, sub-byte and bits types, which no transport knows.
std::optional<DataType> data_type(at::ScalarType type);

/// Where the memory of one call lies, and, if that is a GPU, all of it: a call there goes on after
/// it has returned.
struct CallMemory {
  c10::Device device = at::kCPU;
  bool any = false;  // `device` is that of a tensor
  std::vector<at::Tensor> tensors;
};

/// Which call is being prepared, for messages. Built on the stack; refers to the backend's strings.
struct Site {
  const char* operation;
  const std::string& group;
  int rank;
  CallMemory* memory = nullptr;  // null: the call is for the CPU alone

  /// `fastvideo: all_gather on group "tp", rank 1: `
  std::string prefix() const;
};

enum class Access {
  kRead,
  kReadStrided,  // as kRead, but `memory` keeps the strides it has; for who can follow them
  kWrite,
  kReadWrite,
};

/// Contiguous memory (but see Access::kReadStrided) of one tensor, on the CPU or a GPU. Owns a
/// reference, so the memory stays while the view exists.
struct TensorView {
  at::Tensor memory;  // the tensor itself if it is contiguous, else a contiguous copy
  at::Tensor target;  // the tensor `memory` must be copied back to; undefined if there is none
  DataType type = DataType::kUInt8;
  std::size_t bytes = 0;
  std::byte* data = nullptr;
  CallMemory* call = nullptr;  // if this is on a GPU; only while the call is prepared

  std::size_t count() const noexcept { return bytes / element_size(type); }
  Block block() const noexcept { return contiguous_block(data, bytes); }
  ConstBlock const_block() const noexcept {
    return contiguous_block(static_cast<const void*>(data), bytes);
  }

  /// Copies a staged result to where the user wants it; nothing if there is none.
  void copy_back() const;
};

/// The memory of `tensor`; `what` names the argument in messages, `index` its place in a list (-1:
/// no list). A written tensor's version counter goes up, so that autograd notices.
///
/// @throws c10::TypeError for what is no dense strided tensor of a known dtype, NotImplementedError
///         for a GPU where only the CPU is served, ValueError for an output whose elements share
///         memory, and for tensors of one call on several devices.
TensorView view(const Site& site, const at::Tensor& tensor, Access access, const char* what,
                int index = -1);
std::vector<TensorView> views(const Site& site, const std::vector<at::Tensor>& tensors,
                              Access access, const char* what);

/// @throws c10::ValueError if two of the outputs share memory: the result would depend on timing.
void check_disjoint(const Site& site, const std::vector<TensorView>& outputs, const char* what);

/// Copies the input if it shares memory with the output, except if both begin at the same byte of
/// memory and have the same length and `in_place_allowed`.
void separate(TensorView& input, const TensorView& output, bool in_place_allowed);

/// @throws c10::ValueError naming both dtypes if they differ.
void check_same_type(const Site& site, const TensorView& a, const char* a_name, const TensorView& b,
                     const char* b_name);

}  // namespace fvd::c10d_
