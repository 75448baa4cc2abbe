// The communicator of a group's GPUs: made when first needed, given up from any thread.
#pragma once

#include <c10/core/Device.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "c10d/group_runner.h"
#include "comm/communicator.h"

namespace fvd::c10d_ {

/// Waits for `mutex`, and for Ctrl-C. Whoever holds it is bound by his call's deadline.
std::unique_lock<std::timed_mutex> wait_for_turn(std::timed_mutex& mutex, const Host& host);

/// Threads: all methods from any thread.
class DeviceConnection {
 public:
  using Interrupt = std::function<void()>;

  /// Collective over the group; to call the interrupt now and then (GroupOptions). @throws Error
  using Maker = std::function<std::unique_ptr<Communicator>(c10::Device, const Interrupt&)>;

  /// `ranks`: the group on the CPU, which knows who has gone.
  DeviceConnection(std::shared_ptr<GroupRunner> ranks, Maker make)
      : ranks_(std::move(ranks)), make_(std::move(make)) {}

  /// Whoever owns the group must have called close().
  ~DeviceConnection();
  DeviceConnection(const DeviceConnection&) = delete;
  DeviceConnection& operator=(const DeviceConnection&) = delete;

  /// Connects the ranks, all of which call it, or returns what they have.
  /// @throws Error(kInvalidArgument) for another device than before, Error(kAborted) after abort()
  ///         or close() while it connected, Error(kPeerLost) if a rank has gone meanwhile
  std::shared_ptr<Communicator> communicator(c10::Device device);

  /// Null until connected, and once closed.
  std::shared_ptr<Communicator> current() const;

  /// The device of the group, if it has been connected. Free of locks while there is none.
  std::optional<c10::Device> device() const;

  /// See Communicator::abort. Ends connecting, too.
  void abort(const std::string& reason) noexcept;

  /// Leaves; waits at most some seconds. Idempotent.
  void close() noexcept;

 private:
  std::shared_ptr<Communicator> existing(c10::Device device) const;
  void give_up(const std::string& reason);
  void check_wanted() const;

  const std::shared_ptr<GroupRunner> ranks_;
  const Maker make_;
  std::timed_mutex making_;  // held by who connects

  mutable std::mutex mutex_;                    // guards what follows
  std::shared_ptr<Communicator> communicator_;  // null until connected, and once closed
  std::optional<c10::Device> device_;
  std::string given_up_;  // why nobody may connect any more
  bool closed_ = false;
  std::atomic<bool> any_{false};  // communicator_ has been made
};

}  // namespace fvd::c10d_
