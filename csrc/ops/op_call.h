// What every op begins with: from the words of a schema to the group's backend.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/hash.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "c10d/backend.h"
#include "c10d/tensor_view.h"
#include "comm/types.h"

namespace fvd::ops {

/// One op on one group. Holds the backend for as long as the op runs.
class OpCall {
 public:
  static constexpr std::int64_t kAnyRank = -1;

  /// `operation` is a literal, for messages. `size` and `rank` are what the caller's shapes were
  /// computed with.
  /// @throws ValueError if there is no such group, or one of another backend, size or rank
  OpCall(const char* operation, std::string_view group, std::int64_t size,
         std::int64_t rank = kAnyRank);

  std::size_t ranks() const { return static_cast<std::size_t>(backend_->getSize()); }
  std::size_t rank() const { return static_cast<std::size_t>(backend_->getRank()); }
  c10d_::Site site() const {
    c10d_::Site site = backend_->site(operation_);
    site.memory = &memory_;
    return site;
  }

  c10d_::TensorView read(const at::Tensor& x, const char* what, int index = -1) const {
    return c10d_::view(site(), x, c10d_::Access::kRead, what, index);
  }
  c10d_::TensorView write(const at::Tensor& y) const {
    return c10d_::view(site(), y, c10d_::Access::kWrite, "the result");
  }

  /// A rank named in an argument. @throws ValueError if the group has none of that number
  int checked_root(std::int64_t root, const char* what) const;

  /// Runs `body`, which must own what it uses, as the group's next collective. `layout` (not 0) is
  /// a hash over what all ranks must mean alike: bytes of other dimensions would often fit. If the
  /// memory is a GPU's, returns when it is enqueued on the current stream.
  template <typename Body>
  void run(std::size_t layout, Body body) const {
    if (!memory_.device.is_cpu()) return run_on_device(memory_, layout, body);
    backend_->run_in_order(
        [layout, body = std::move(body)](Communicator& communicator, const Call& settings) {
          Call call = settings;
          call.layout = layout;
          body(communicator, call);
        });
  }
  template <typename Body>
  void run(Body body) const {
    if (!memory_.device.is_cpu()) return run_on_device(memory_, 0, body);
    backend_->run_in_order(std::move(body));
  }

  /// The same on the GPU of `memory`, which holds all that `body` uses there: returns when it is
  /// enqueued on the current stream.
  template <typename Body>
  void run_on_device(const c10d_::CallMemory& memory, std::size_t layout, const Body& body) const {
    backend_->run_on_device(operation_, memory,
                            [layout, &body](Communicator& communicator, const Call& settings) {
                              Call call = settings;
                              call.layout = layout;
                              body(communicator, call);
                            });
  }

  /// For exchange_path() of the group. See FastVideoBackend.
  void note_exchange(const std::string& path) const { backend_->note_exchange(path); }

 private:
  const char* operation_;
  mutable c10d_::CallMemory memory_;  // of what was read and written: all on one device
  c10::intrusive_ptr<c10d_::FastVideoBackend> backend_;
};

/// "sum", "avg", "product", "min", "max", "band", "bor" or "bxor". @throws ValueError
ReduceKind reduce_kind(const c10d_::Site& site, std::string_view op);

/// What the derivative of a reduction begins with. @throws NotImplementedError unless `op` is
/// linear, "sum" or "avg"
void check_linear_reduction(const char* operation, const std::string& group, std::string_view op);

/// `dim` of `x` as an index. @throws ValueError if `x` has no such dimension; negative ones do not
/// reach the ops.
std::size_t checked_dim(const c10d_::Site& site, const at::Tensor& x, std::int64_t dim);

/// The sizes along `dim` that the ranks have or get: `given`, or equal parts of `total`.
/// @throws ValueError if they are not one per rank, negative, do not add up to `total`, or if
///         `total` cannot be divided
std::vector<std::int64_t> sizes_of_ranks(const c10d_::Site& site, at::OptionalIntArrayRef given,
                                         std::int64_t total, std::int64_t ranks, const char* what);

/// For OpCall::run: a hash of numbers, not 0.
class Layout {
 public:
  Layout& add(std::int64_t number) {
    hash_ = c10::hash_combine(hash_, static_cast<std::size_t>(number));
    return *this;
  }
  Layout& add(at::IntArrayRef numbers) {
    for (const std::int64_t number : numbers) add(number);
    return add(static_cast<std::int64_t>(numbers.size()));
  }
  /// As add of a list of `count` numbers that are all this one.
  Layout& add_equal(std::int64_t number, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) add(number);
    return add(count);
  }
  /// All sizes but those along `dims`, where ranks may differ.
  Layout& add_others(at::IntArrayRef sizes, std::initializer_list<std::size_t> dims) {
    for (std::size_t d = 0; d < sizes.size(); ++d) {
      if (std::find(dims.begin(), dims.end(), d) == dims.end()) add(sizes[d]);
    }
    return *this;
  }
  std::size_t hash() const { return hash_ | 1; }

 private:
  std::size_t hash_ = 0;
};

bool all_equal(const std::vector<std::int64_t>& sizes);

/// An uninitialised contiguous tensor as `x`, of other sizes.
at::Tensor empty_as(const at::Tensor& x, at::IntArrayRef sizes);

}  // namespace fvd::ops
