// What a call on a GPU hands back: it goes on there when the call has returned.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "c10d/group_runner.h"
#include "c10d/tensor_view.h"
#include "c10d/work.h"

namespace fvd::c10d_ {

/// What a call on a GPU brings with it.
struct DeviceCall {
  ::c10d::OpType type;
  const char* title;      // for the profiler
  const char* operation;  // a literal
  std::chrono::milliseconds timeout;
  std::uint64_t sequence;
  bool async;
};

/// A collective that is enqueued. Memory: of an asynchronous one it holds all tensors until a
/// stream waits for it. Threads: all methods from any thread.
class DeviceWork final : public ::c10d::Work {
 public:
  /// `done` was recorded on `stream` behind the call. `held` is empty where the call ran on the
  /// caller's own stream. `captured`: into a graph.
  DeviceWork(int rank, const DeviceCall& call, std::shared_ptr<GroupRunner> runner,
             std::function<void()> checker, c10::Stream stream, c10::Event done, bool captured,
             std::vector<at::Tensor> outputs, std::vector<at::Tensor> held);
  ~DeviceWork() override;

  bool isCompleted() override;
  bool isSuccess() const override;
  /// What broke the group, if that has happened by now.
  std::exception_ptr exception() const override;

  /// Lets the current stream wait, not the host. With a `timeout` above 0 the host waits too, at
  /// most so long; the call goes on. @throws DistBackendError if the group is broken
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  void synchronize() override;

  /// Complete at once; it orders streams.
  FuturePtr getFuture() override;
  std::vector<at::Tensor> result() override { return outputs_; }
  std::uint64_t getSequencenumber() const override { return sequence_; }

 private:
  const char* const operation_;
  const std::uint64_t sequence_;
  const std::shared_ptr<GroupRunner> runner_;
  const std::function<void()> checker_;  // of the communicator, which may be gone
  const c10::Stream stream_;
  const c10::Event done_;
  const bool captured_;
  const std::vector<at::Tensor> outputs_;
  std::vector<at::Tensor> held_;  // guarded by mutex_
  FuturePtr future_;              // guarded by mutex_
};

/// A send or receive on a GPU.
class DeviceTransferWork final : public ::c10d::Work {
 public:
  DeviceTransferWork(int rank, const DeviceCall& call, std::shared_ptr<GroupRunner> runner,
                     std::function<void()> checker, std::unique_ptr<Transfer> transfer,
                     TensorView view);
  /// One that nobody waited for is finished on the group's own thread.
  ~DeviceTransferWork() override;

  bool isCompleted() override;
  bool isSuccess() const override;
  std::exception_ptr exception() const override;

  /// The host waits until the peer has come, then the current stream waits for the message.
  bool wait(std::chrono::milliseconds timeout = kNoTimeout) override;
  void synchronize() override { wait(); }
  int sourceRank() const override;
  FuturePtr getFuture() override;
  std::vector<at::Tensor> result() override;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

/// The stream that `device` has current on this thread.
c10::Stream current_stream(c10::Device device);
/// As the transports know it.
Stream native(const c10::Stream& stream);

/// Of several works as one, if one of them is on a GPU; else null.
FuturePtr device_future(const std::vector<WorkPtr>& works);

}  // namespace fvd::c10d_
