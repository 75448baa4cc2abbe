// Steps that are asked again and again until they say that they are done, on a thread of their own.
// None waits for another.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

namespace fvd::c10d_ {

/// Threads: all methods may be called from any thread, also from a step.
class Poller {
 public:
  /// `name` is the thread's, at most 15 characters.
  explicit Poller(const char* name);

  /// As stop().
  ~Poller();
  Poller(const Poller&) = delete;
  Poller& operator=(const Poller&) = delete;

  /// `step` returns true when it is done, never blocks for long and does not throw. It is destroyed
  /// on the thread. It is asked at once, then less and less often: every millisecond in the end, or
  /// less if there are so many that a round takes long.
  /// False, and the step is dropped, after stop(). @throws std::system_error: no thread to be had.
  [[nodiscard]] bool push(std::function<bool()> step);

  /// True as soon as no step is left, false if `limit` passes first.
  bool wait_idle(std::chrono::milliseconds limit) const;

  bool on_own_thread() const noexcept;

  /// Waits for the steps there are, then ends and joins the thread (from a step: lets it end by
  /// itself).
  void stop() noexcept;

  /// In a forked child: forgets the thread, which exists in the parent only.
  void forget() noexcept;

 private:
  struct Queue;
  std::shared_ptr<Queue> queue_;  // shared with the thread, which may outlive this object
  const char* const name_;
};

}  // namespace fvd::c10d_
