// A send or receive under way, as c10d sees it.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "c10d/group_runner.h"
#include "c10d/tensor_view.h"
#include "c10d/work.h"

namespace fvd::c10d_ {

/// Progress: the transport's. Nobody has to wait for it to go on; a work dropped before it is done
/// is finished on the group's own thread, as users of isend() expect (given up if the group is
/// destroyed before).
/// Threads: all methods from any thread.
class TransferWork final : public ::c10d::Work {
 public:
  TransferWork(int rank, ::c10d::OpType type, const char* title,
               std::shared_ptr<GroupRunner> runner, std::shared_ptr<Communicator> communicator,
               std::unique_ptr<Transfer> transfer, TensorView view,
               std::chrono::milliseconds timeout);
  ~TransferWork() override;

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;

  /// Blocks until done and throws what the transfer threw. `timeout` 0: the group's own. If a given
  /// one passes, DistBackendError is thrown and the transfer goes on.
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;

  /// The sender, also for a receive from any source; -1 until done.
  int sourceRank() const override;

  FuturePtr getFuture() override;
  std::vector<at::Tensor> result() override;

 private:
  struct State;

  /// Has the group's thread complete it. False if the group is closed.
  bool poll_aside() const;

  std::shared_ptr<State> state_;
};

}  // namespace fvd::c10d_
