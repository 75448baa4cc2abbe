// Who runs a group's calls, and in which order. Knows the Communicator, no tensor and no torch.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "c10d/callbacks.h"
#include "c10d/host.h"
#include "c10d/poller.h"
#include "c10d/worker.h"
#include "comm/communicator.h"
#include "comm/error.h"

namespace fvd::c10d_ {

/// One per group and device. Shared by the backend object and by works that are not done.
///
/// A synchronous collective runs on the calling thread if nothing is queued; all others run one
/// after the other in the order they were given, on the group's thread or on one that waits. Sends
/// and receives go beside both.
///
/// Threads: all methods from any thread.
/// Errors:  calls after close() or in a forked child throw Error(kAborted).
class GroupRunner : public std::enable_shared_from_this<GroupRunner> {
 public:
  using Body = std::function<void(Communicator&, const Call&)>;

  /// `host` must outlive this object.
  GroupRunner(std::unique_ptr<Communicator> communicator, std::string group, const Host& host);

  /// Whoever owns the group must have called close(): queued calls keep this object alive.
  ~GroupRunner();
  GroupRunner(const GroupRunner&) = delete;
  GroupRunner& operator=(const GroupRunner&) = delete;

  /// Runs `body` now and returns true, or returns false without having done anything because
  /// earlier collectives are still queued. What the body throws passes.
  bool try_run(const Body& body, std::chrono::milliseconds timeout);

  /// Queues `body`; `done` gets what it threw, or null, on the thread that ran it. By then the next
  /// collective may run, so `done` may start some and wait for them.
  void enqueue(Body body, std::chrono::milliseconds timeout,
               std::function<void(std::exception_ptr)> done);

  /// Runs queued collectives on the calling thread as long as it can and `enough` is false. Throws
  /// what the user ended one of them with (Ctrl-C): that one has failed with kAborted.
  void help(const std::function<bool()>& enough);

  /// try_run, else through the queue and wait. `body` must own what it uses: Ctrl-C may end the
  /// wait before it has run.
  void run(const Body& body, std::chrono::milliseconds timeout);

  /// Asks `step` on a thread beside the collectives until it returns true; see Poller. False after
  /// close().
  [[nodiscard]] bool poll_aside(std::function<bool()> step) { return aside_.push(std::move(step)); }

  /// Runs what a user hung on a future; see Callbacks.
  void run_callbacks(std::function<void()> task) { callbacks_.run(std::move(task)); }

  /// For sends and receives. Valid as long as the pointer is held, also after close().
  std::shared_ptr<Communicator> communicator() const;

  /// @throws Error(kAborted) if no call can succeed any more because of close() or fork().
  void check_usable() const;

  /// See Communicator::abort. Does not wait.
  void abort(const std::string& reason) noexcept;

  /// Lets queued work end, aborts what has not ended after `limit`, and gives the communicator up.
  /// Idempotent.
  void close(std::chrono::milliseconds limit) noexcept;

  /// True as soon as nothing is queued or running aside.
  bool wait_idle(std::chrono::milliseconds limit) const;

  /// Why the group is broken, as far as this rank's calls have told. kInvalidArgument: it is not.
  Kind first_failure() const noexcept { return failure_.load(std::memory_order_relaxed); }
  void note_failure(Kind kind) noexcept;

  const Host& host() const noexcept { return host_; }
  const std::string& group() const noexcept { return group_; }

  /// False in a child forked after this object was made: the threads and peers are its parent's.
  bool in_home_process() const noexcept;

 private:
  [[noreturn]] void throw_closed() const;
  void check_not_inside() const;
  using Interrupt = const std::function<void()>*;  // see Call::interrupt
  void execute(const Body& body, std::chrono::milliseconds timeout, Interrupt interrupt);
  void run_queued(Body body, std::chrono::milliseconds timeout,
                  const std::function<void(std::exception_ptr)>& done);
  std::unique_lock<std::timed_mutex> wait_for_turn(std::chrono::milliseconds timeout,
                                                   Interrupt interrupt);

  const std::string group_;
  const Host& host_;
  const unsigned fork_generation_;
  std::atomic<Kind> failure_{Kind::kInvalidArgument};

  mutable std::mutex communicator_mutex_;
  std::shared_ptr<Communicator> communicator_;  // null once closed

  std::atomic<std::thread::id> turn_of_;   // the thread that runs a collective
  std::timed_mutex order_;                 // held while a collective runs
  Worker collectives_{"fastvideo-calls"};  // asynchronous collectives, in order
  Poller aside_{"fastvideo-aside"};        // completes transfers nobody waits for
  Callbacks callbacks_;                    // of their futures
};

}  // namespace fvd::c10d_
