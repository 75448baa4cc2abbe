// Communicators that CUDA graphs call: a graph that is replayed after its group was left must find
// them, and NCCL would wait for the graph's end before it frees one.
#pragma once

#include <atomic>
#include <memory>

#include "nccl/context.h"

namespace fvd::nccl {

/// The graphs that hold calls on one communicator. Threads: add() from one at a time, any() from
/// all.
class GraphUses {
 public:
  /// To be called for each call on the communicator that is captured on `stream`.
  /// @throws Error(kLibrary)
  void add(const CudaApi& cuda, CudaStream stream);

  /// Whether one of them exists, or something that was instantiated from it.
  bool any() const noexcept { return alive_->load(std::memory_order_acquire) > 0; }

 private:
  using Count = std::atomic<long>;

  // The graphs count down when they go, from a thread of CUDA's.
  static void gone(void* count);

  std::shared_ptr<Count> alive_ = std::make_shared<Count>(0);
  unsigned long long last_ = 0;  // capture that was counted last; CUDA numbers them from 1
};

/// Takes over a communicator that nobody but graphs uses.
void keep_for_graphs(std::shared_ptr<Context> context, Comm comm, GraphUses uses) noexcept;

/// Frees those that were taken over and whose graphs are gone.
void free_kept() noexcept;

}  // namespace fvd::nccl
