// How a rank waits: it spins while there are cores enough, then yields, then sleeps.
//
// Pure spinning costs a scheduler slice (4 ms a barrier) as soon as ranks outnumber cores; yielding
// costs as much as soon as a foreign busy thread has the core; sleeping always costs a wake-up. So:
// spin only where every rank has a core, yield while yields return quickly, and sleep otherwise.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>

#include "shm/slot.h"

namespace fvd::shm {

using Clock = std::chrono::steady_clock;

/// Cores this process may use: its affinity mask and its cgroup's quota, whichever is less.
int usable_cores();

/// Wakes the owner of `bell` if one of its threads sleeps. Call it after the word it waits for has
/// been stored with memory_order_seq_cst: that store and the load of `sleepers` here are one side
/// of the handshake whose other side is in Waiter::sleep.
inline void ring(Bell& bell);

/// Wakes unconditionally.
void ring_always(Bell& bell) noexcept;

/// One waiting place: a thread at a time. Remembers what it learnt about the load of the machine.
class Waiter {
 public:
  /// `bell` is the place to sleep; it outlives the waiter.
  Waiter(Bell& bell, bool core_for_each, std::chrono::microseconds spin)
      : bell_(&bell), spin_(core_for_each ? spin : std::chrono::microseconds(0)) {}

  /// Returns once `ready()`. `check()` runs about every 100 ms and after every wake-up or signal
  /// while it is not; it may throw to give up, and returns how long may be slept at most before it
  /// is due again.
  template <typename Ready, typename Check>
  void wait(Ready&& ready, Check&& check) {
    if (spin_.count() != 0 && spin(ready)) return;
    if (yield(ready)) return;
    sleep(ready, check);
  }

 private:
  // A yield that took longer than this handed the core to a stranger, whose time slice is 700 us
  // and more. Ranks that share the core give it back sooner, each after one call of its program.
  static constexpr std::chrono::microseconds kSlowYield{200};
  // After a slow yield that many waits sleep at once, four times as many after the next, up to the
  // largest: one slow yield (about 3 ms) among so many does not count. Each wait that a yield ends
  // takes one off again, so that a stranger who was here once is soon forgotten.
  static constexpr int kFewWaits = 16;
  static constexpr int kManyWaits = 2048;
  static constexpr std::chrono::microseconds kYieldFor{200};

  template <typename Ready>
  bool spin(Ready& ready);
  template <typename Ready>
  bool yield(Ready& ready);
  template <typename Ready, typename Check>
  void sleep(Ready& ready, Check& check);

  /// FUTEX_WAIT on the bell while it still shows `rings`, for at most `longest` and 100 ms.
  void sleep_once(std::uint32_t rings, Clock::duration longest) noexcept;
  static void yield_core() noexcept;

  Bell* bell_;
  std::chrono::microseconds spin_;
  int waits_without_yield_ = 0;
  int waits_after_slow_yield_ = kFewWaits;
};

inline void pause_core() noexcept {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline void ring(Bell& bell) {
  if (bell.sleepers.load(std::memory_order_seq_cst) != 0) [[unlikely]]
    ring_always(bell);
}

template <typename Ready>
bool Waiter::spin(Ready& ready) {
  // The clock costs as much as twenty pauses; it is read after the first few hundred of them.
  for (int i = 0; i < 256; ++i) {
    if (ready()) return true;
    pause_core();
  }
  const auto end = Clock::now() + spin_;
  do {
    for (int i = 0; i < 64; ++i) {
      if (ready()) return true;
      pause_core();
    }
  } while (Clock::now() < end);
  return false;
}

template <typename Ready>
bool Waiter::yield(Ready& ready) {
  if (ready()) return true;
  if (waits_without_yield_ > 0) {
    --waits_without_yield_;
    return false;
  }
  const auto start = Clock::now();
  auto before = start;
  do {
    yield_core();
    if (ready()) {
      waits_after_slow_yield_ = std::max(kFewWaits, waits_after_slow_yield_ - 1);
      return true;
    }
    const auto after = Clock::now();
    if (after - before > kSlowYield) {
      waits_without_yield_ = waits_after_slow_yield_;
      waits_after_slow_yield_ = std::min(kManyWaits, 4 * waits_after_slow_yield_);
      return false;
    }
    before = after;
  } while (before - start < kYieldFor);
  return false;
}

template <typename Ready, typename Check>
void Waiter::sleep(Ready& ready, Check& check) {
  struct Sleeper {
    explicit Sleeper(Bell& b) : bell(b) { bell.sleepers.fetch_add(1, std::memory_order_seq_cst); }
    ~Sleeper() { bell.sleepers.fetch_sub(1, std::memory_order_seq_cst); }
    Bell& bell;
  };
  Sleeper sleeper(*bell_);
  while (true) {
    // Read before `ready`: a ring that comes after the look makes FUTEX_WAIT return at once.
    const std::uint32_t rings = bell_->rings.load(std::memory_order_seq_cst);
    if (ready()) return;
    sleep_once(rings, check());
  }
}

}  // namespace fvd::shm
