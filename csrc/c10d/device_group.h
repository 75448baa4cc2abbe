// The GPU's side of a group: its communicator, made when first needed, and its stream.
//
// A synchronous call is enqueued on the caller's current stream; an asynchronous one on a stream of
// the group's own, which first waits for the current one. Both return at once; see device_work.h
// for what waits then. CUDA is reached through c10's interfaces of devices, streams and events,
// which torch fills if it was built with CUDA: nothing of it is needed to compile this.
#pragma once

#include <c10/core/Stream.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "c10d/device_work.h"
#include "c10d/group_runner.h"
#include "c10d/tensor_view.h"
#include "comm/communicator.h"

namespace fvd::c10d_ {

/// Threads: all methods from any thread. Calls of several threads go one after the other.
/// Errors:  as GroupRunner's.
class DeviceGroup {
 public:
  /// Collective over the group. @throws Error
  using Maker = std::function<std::unique_ptr<Communicator>(c10::Device)>;

  DeviceGroup(std::shared_ptr<GroupRunner> runner, Maker make)
      : runner_(std::move(runner)), make_(std::move(make)) {}

  /// Whoever owns the group must have called close(): works may outlive it.
  ~DeviceGroup();
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  /// Connects the ranks, all of which call it, or have with their first call.
  void connect(c10::Device device);

  /// The device of the group, if it has been connected. Free of locks while there is none.
  std::optional<c10::Device> connected() const;

  /// Enqueues `body` on memory.device.
  WorkPtr run(const DeviceCall& call, const CallMemory& memory, std::vector<at::Tensor> outputs,
              const GroupRunner::Body& body);
  WorkPtr transfer(const DeviceCall& call, TensorView view, bool sends, int peer, int tag);

  /// See Communicator::abort.
  void abort(const std::string& reason) noexcept;

  /// Leaves; waits at most some seconds. Idempotent.
  void close() noexcept;

  /// Tells the runner what the communicator's own thread has found.
  void note_failure() noexcept;

 private:
  std::shared_ptr<Communicator> communicator(c10::Device device);
  std::shared_ptr<Communicator> current() const;

  const std::shared_ptr<GroupRunner> runner_;
  const Maker make_;

  std::mutex order_;  // held while a call is enqueued, which may take as long as connecting does
  std::optional<c10::Stream> stream_;  // of asynchronous calls; under order_

  mutable std::mutex mutex_;
  std::shared_ptr<Communicator> communicator_;  // null until connected, and once closed
  std::optional<c10::Device> device_;
  std::atomic<bool> any_{false};  // communicator_ has been made
};

}  // namespace fvd::c10d_
