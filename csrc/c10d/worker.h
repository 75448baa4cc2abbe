// Tasks in order, on a thread of their own that the first of them starts, or on that of a waiter.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

namespace fvd::c10d_ {

/// Threads: all methods may be called from any thread, also from a task.
class Worker {
 public:
  /// `name` is the thread's, at most 15 characters.
  explicit Worker(const char* name);

  /// As stop().
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  /// `task` is destroyed on the thread that ran it, right after. It must not throw there, except
  /// what ends the wait of a thread that called run_next().
  /// False, and the task is dropped, after stop(). @throws std::system_error: no thread to be had.
  [[nodiscard]] bool push(std::function<void()> task);

  /// Runs the next task on the calling thread, which saves whoever waits for it two changes of
  /// threads. False, and nothing was done, if a task is running or none is queued. What the task
  /// throws passes.
  bool run_next();

  /// From a task: its turn is over, the next may begin. What it still does (completing a future,
  /// say, whose callbacks may push and wait) runs beside the queue.
  void end_turn() noexcept;

  /// No task is queued or has its turn.
  bool idle() const noexcept;

  /// True as soon as idle, false if `limit` passes first.
  bool wait_idle(std::chrono::milliseconds limit) const;

  bool on_own_thread() const noexcept;

  /// Runs what is queued, then ends and joins the thread (from a task: lets it end by itself).
  void stop() noexcept;

  /// In a forked child: forgets the thread, which exists in the parent only.
  void forget() noexcept;

 private:
  struct Queue;
  std::shared_ptr<Queue> queue_;  // shared with the thread, which may outlive this object
  const char* const name_;
};

}  // namespace fvd::c10d_
