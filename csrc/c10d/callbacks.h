// A thread for each callback that needs one: what a user hangs on a future may wait for another
// future, whose callbacks must not stand behind it.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

namespace fvd::c10d_ {

/// Threads: all methods may be called from any thread, also from a task.
class Callbacks {
 public:
  Callbacks();

  /// As stop().
  ~Callbacks();
  Callbacks(const Callbacks&) = delete;
  Callbacks& operator=(const Callbacks&) = delete;

  /// Runs `task`, which must not throw, at once: on a thread that has nothing to do or on a new
  /// one; here if no thread can be had. It is destroyed there.
  void run(std::function<void()> task);

  /// True as soon as no task is left but one that asks, false if `limit` passes first.
  bool wait_idle(std::chrono::milliseconds limit) const;

  /// Threads that have nothing to do end; others do so after their task. Does not wait: a task may
  /// be waiting for whoever calls this.
  void stop() noexcept;

  /// In a forked child: forgets the threads, which exist in the parent only.
  void forget() noexcept;

 private:
  struct Queue;
  std::shared_ptr<Queue> queue_;  // shared with the threads, which may outlive this object
};

}  // namespace fvd::c10d_
