// The GPU's side of a group: its communicator, made when first needed, and its stream.
//
// A synchronous call is enqueued on the caller's current stream; an asynchronous one on a stream of
// the group's own, which first waits for the current one. Both return at once; see device_work.h
// for what waits then. CUDA is reached through c10's interfaces of devices, streams and events,
// which torch fills if it was built with CUDA: nothing of it is needed to compile this.
#pragma once

#include <c10/core/Stream.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "c10d/device_connection.h"
#include "c10d/device_work.h"
#include "c10d/group_runner.h"
#include "c10d/tensor_view.h"
#include "comm/communicator.h"

namespace fvd::c10d_ {

/// Threads: all methods from any thread. Collectives of several threads go one after the other.
/// Errors:  as GroupRunner's.
class DeviceGroup {
 public:
  DeviceGroup(std::shared_ptr<GroupRunner> runner, DeviceConnection::Maker make)
      : runner_(std::move(runner)), connection_(runner_, std::move(make)) {}
  DeviceGroup(const DeviceGroup&) = delete;
  DeviceGroup& operator=(const DeviceGroup&) = delete;

  /// Connects the ranks, all of which call it, or have with their first call.
  void connect(c10::Device device) { connection_.communicator(device); }

  /// See DeviceConnection; so are abort() and close(). Works may outlive the group.
  std::optional<c10::Device> connected() const { return connection_.device(); }

  /// Enqueues `body` on memory.device.
  WorkPtr run(const DeviceCall& call, const CallMemory& memory, std::vector<at::Tensor> outputs,
              const GroupRunner::Body& body);
  WorkPtr transfer(const DeviceCall& call, TensorView view, bool sends, int peer, int tag);

  void abort(const std::string& reason) noexcept { connection_.abort(reason); }
  void close() noexcept { connection_.close(); }

  /// Tells the runner what the communicator's own thread has found.
  void note_failure() noexcept;

 private:
  const std::shared_ptr<GroupRunner> runner_;
  DeviceConnection connection_;

  // Of collectives; a barrier holds it until all ranks have come. Sends and receives go beside.
  std::timed_mutex order_;
  std::optional<c10::Stream> stream_;  // of asynchronous calls; under order_
};

}  // namespace fvd::c10d_
