// What a call through c10d hands back: a collective, and several calls as one.
#pragma once

#include <ATen/core/ivalue.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <torch/csrc/distributed/c10d/Work.hpp>
#include <vector>

#include "c10d/group_runner.h"
#include "c10d/host.h"

namespace fvd::c10d_ {

using FuturePtr = c10::intrusive_ptr<c10::ivalue::Future>;
using WorkPtr = c10::intrusive_ptr<::c10d::Work>;

/// A title for the profiler if one listens now, else null: recording costs more than a small call.
const char* profiling_title(const char* title);

/// A future of a list of tensors. Completed by settle(), which also runs its callbacks.
FuturePtr make_future();
void settle(const FuturePtr& future, const std::exception_ptr& error,
            const std::vector<at::Tensor>& outputs);

/// One collective. Memory: holds the outputs; the inputs are held by the call until it is done.
/// Threads: all methods from any thread.
class CollectiveWork final : public ::c10d::Work {
 public:
  /// `operation` is a literal, for messages. `title` as profiling_title() gave it; `inputs` only
  /// matter with a title.
  CollectiveWork(int rank, ::c10d::OpType type, const char* operation, const char* title,
                 const std::optional<std::vector<at::Tensor>>& inputs, std::uint64_t sequence,
                 std::vector<at::Tensor> outputs, const Host& host);

  /// The call goes through the queue of `runner`; to be said before it does.
  void set_queued(std::shared_ptr<GroupRunner> runner);

  /// Ends the work: wakes waiters and completes the future with the outputs or with `error`
  /// (already translated). Exactly once.
  void complete(std::exception_ptr error);

  /// Blocks until done and throws what the call threw. Without a `timeout` the calling thread runs
  /// the call itself if its turn has not come yet. `timeout` 0: the call's own, which always
  /// ends it. If a shorter one passes, DistBackendError is thrown and the call goes on.
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;

  FuturePtr getFuture() override;
  std::vector<at::Tensor> result() override { return outputs_; }
  std::uint64_t getSequencenumber() const override { return sequence_; }

 private:
  void wait_until_completed(std::chrono::milliseconds timeout);

  const char* const operation_;
  const std::uint64_t sequence_;
  const std::vector<at::Tensor> outputs_;
  const Host& host_;
  std::shared_ptr<GroupRunner> runner_;  // while queued; guarded by mutex_
  FuturePtr future_;                     // made by the first getFuture(); guarded by mutex_
};

/// Several calls as one: done when all are, failed with the first failure in their order.
class CoalescedWork final : public ::c10d::Work {
 public:
  CoalescedWork(int rank, std::vector<WorkPtr> works);

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  FuturePtr getFuture() override;
  std::vector<at::Tensor> result() override;

 private:
  const std::vector<WorkPtr> works_;
};

/// Tells torch that somebody has waited for `work`, where torch keeps a register of those.
void mark_waited(::c10d::Work& work);

}  // namespace fvd::c10d_
