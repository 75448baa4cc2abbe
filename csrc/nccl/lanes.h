// Sends and receives. Each direction between two ranks is a lane: an NCCL communicator of two ranks
// with a stream of its own. So they stand beside the order of the collectives, and two ranks that
// both send first do not wait for each other on the device, as they would on one stream.
//
// A lane is made with the first transfer on it, without anybody waiting: transfers queue until it
// is connected. Messages of a lane match in the order in which they are sent and received; tags are
// compared, where calls are compared before they run, not matched.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "nccl/context.h"
#include "nccl/control.h"
#include "nccl/handle.h"
#include "nccl/in_flight.h"
#include "nccl/staging.h"

namespace fvd::nccl {

/// Threads: all methods from any thread.
class Lanes : public std::enable_shared_from_this<Lanes> {
 public:
  /// `control` and `breaker` are not touched after leave(). `breaker` ends the group.
  Lanes(std::shared_ptr<Context> context, Control& control, std::shared_ptr<EventPool> events,
        std::shared_ptr<InFlight> in_flight, NcclCheck check,
        std::function<void(const Error&)> breaker);
  ~Lanes();

  /// @throws Error(kUnsupported) for strided memory without kernels, or during capture on a lane
  ///         that is not connected
  std::unique_ptr<Transfer> start(bool sends, Block data, DataType type, int peer, int tag,
                                  const Call& call);

  /// Moves on whatever can be moved on without waiting. For the watchdog.
  /// @throws Error what ends the group
  void drive();

  /// Whether a transfer with `member` waits for it.
  bool need(int member);

  /// The group is broken: ends what runs on the device.
  void abort() noexcept;

  /// Fails what has not been launched and begins to leave. Waits for a thread that ends the group.
  void leave() noexcept;

  /// leave(), and has left after `patience` at most. Idempotent. False if what was launched had to
  /// be cut off.
  bool close(milliseconds patience) noexcept;

 private:
  struct Lane;
  struct Item;
  class Handed;

  Lane& lane(bool sends, int peer);
  void connect(Lane& lane);
  void drive_locked(Lane& lane);
  bool may_begin(Item& item);
  void launch(Lane& lane, Item& item);
  void launched(Lane& lane, Item& item);

  // transfers.cpp
  std::unique_ptr<Transfer> handed(const std::shared_ptr<Item>& item);
  void drop(const std::shared_ptr<Item>& item) noexcept;
  void wait(Item& item, const Call& call);
  bool done(Item& item);
  bool done_locked(Item& item);
  [[noreturn]] void fail(const Error& error);
  void end_group(const Error& error) noexcept;
  bool ended() const noexcept { return closed_ || context_->fate.settled(); }
  void wait_ended() const noexcept;

  const std::shared_ptr<Context> context_;
  Control* control_;  // null once left; guarded by mutex_
  const std::shared_ptr<EventPool> events_;
  const std::shared_ptr<InFlight> in_flight_;
  const NcclCheck check_;

  std::mutex breaker_mutex_;  // held while somebody ends the group; taken before mutex_
  std::function<void(const Error&)> breaker_;  // empty once left; transfers may be dropped later

  std::atomic<bool> closed_{false};  // nothing of this runs on the device any more
  std::mutex mutex_;
  std::map<std::pair<int, bool>, std::unique_ptr<Lane>> lanes_;  // by peer and direction
};

}  // namespace fvd::nccl
