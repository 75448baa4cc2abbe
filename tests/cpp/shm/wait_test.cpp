// Waiting: no wake-up is lost, deadlines and signals get through, and nobody is left counted as
// asleep.
#include "shm/wait.h"

#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>

#include "support/thread_ranks.h"

namespace fvd::shm {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr Clock::duration kNotSoon = std::chrono::hours(1);

/// A word and the bell of who waits for it. A wait here only ever succeeds asleep: the predicate is
/// not looked at before the waiter is counted as a sleeper, and the first yield takes so long that
/// the waiter gives yielding up. What the predicate says is a few microseconds old when it says so,
/// so that most rings come between the look and the sleep.
class SleepingPlace {
 public:
  explicit SleepingPlace(std::atomic<int>& lost) : lost_(lost) {}

  void wait_for(std::uint32_t value) {
    int looks = 0;
    auto last_check = Clock::time_point{};
    const auto ready = [&] {
      if (bell_.sleepers.load() == 0) {
        if (++looks == 2) pause_for(microseconds(80));
        return false;
      }
      const bool seen = word_.load(std::memory_order_seq_cst) == value || lost_ > kMostLost;
      if (!seen) pause_for(microseconds(3));
      return seen;
    };
    waiter_.wait(ready, [&] {
      last_check = Clock::now();
      return kNotSoon;
    });
    // A wake-up that is lost is made good by the waiter's slice of 100 ms.
    const bool slept = last_check != Clock::time_point{};
    if (slept && Clock::now() - last_check > milliseconds(95)) ++lost_;
  }
  void set(std::uint32_t value) {
    word_.store(value, std::memory_order_seq_cst);
    ring(bell_);
  }
  std::uint32_t sleepers() const { return bell_.sleepers.load(); }

  static constexpr int kMostLost = 3;  // a busy machine may look like one now and then

 private:
  static void pause_for(microseconds time) {
    for (const auto end = Clock::now() + time; Clock::now() < end;) pause_core();
  }

  std::atomic<int>& lost_;
  std::atomic<std::uint32_t> word_{0};
  Bell bell_{};
  Waiter waiter_{bell_, false, microseconds(0)};
};

TEST(Wait, NoWakeUpIsLostInAHundredThousand) {
  constexpr std::uint32_t kRounds = test::kSanitized ? 10000 : 100000;
  std::atomic<int> lost{0};
  SleepingPlace ping(lost);
  SleepingPlace pong(lost);
  std::thread other([&] {
    for (std::uint32_t round = 1; round <= kRounds; ++round) {
      ping.wait_for(round);
      pong.set(round);
    }
  });
  for (std::uint32_t round = 1; round <= kRounds; ++round) {
    ping.set(round);
    pong.wait_for(round);
  }
  other.join();
  EXPECT_LE(lost, SleepingPlace::kMostLost);
  EXPECT_EQ(ping.sleepers(), 0U);
  EXPECT_EQ(pong.sleepers(), 0U);
}

TEST(Wait, ReadyAtOnceLooksAtNothingElse) {
  Bell bell{};
  Waiter waiter(bell, true, microseconds(20));
  waiter.wait([] { return true; },
              [] {
                ADD_FAILURE() << "nothing to check";
                return kNotSoon;
              });
}

TEST(Wait, TheCheckMayThrowAndNobodyIsLeftAsleep) {
  Bell bell{};
  Waiter waiter(bell, true, microseconds(20));
  const auto begun = Clock::now();
  EXPECT_THROW(waiter.wait([] { return false; },
                           [&] {
                             if (Clock::now() - begun > milliseconds(150)) {
                               throw std::runtime_error("deadline");
                             }
                             return kNotSoon;
                           }),
               std::runtime_error);
  EXPECT_LT(Clock::now() - begun, milliseconds(1500));
  EXPECT_EQ(bell.sleepers.load(), 0U);
}

TEST(Wait, SleepsNoLongerThanTheCheckAllows) {
  Bell bell{};
  Waiter waiter(bell, false, microseconds(0));
  int checks = 0;
  const auto begun = Clock::now();
  waiter.wait([&] { return checks >= 10; },
              [&] {
                ++checks;
                return milliseconds(2);
              });
  EXPECT_LT(Clock::now() - begun, milliseconds(500)) << "ten slices of 100 ms are a second";
}

TEST(Wait, AThreadIsWokenByAnUnconditionalRing) {
  Bell bell{};
  std::atomic<bool> given_up{false};
  std::atomic<int> checks{0};
  std::thread waiting([&] {
    Waiter waiter(bell, false, microseconds(0));
    waiter.wait([&] { return given_up.load(); },
                [&] {
                  ++checks;
                  return kNotSoon;
                });
  });
  while (checks.load() == 0) std::this_thread::yield();
  given_up = true;
  ring_always(bell);
  waiting.join();
  EXPECT_LE(checks.load(), 50);
}

TEST(Wait, SeveralThreadsSleepOnOneBell) {
  Bell bell{};
  std::atomic<bool> open{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      Waiter waiter(bell, false, microseconds(0));
      waiter.wait([&] { return open.load(); }, [] { return kNotSoon; });
    });
  }
  while (bell.sleepers.load() != 4) std::this_thread::yield();
  open.store(true);
  ring(bell);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(bell.sleepers.load(), 0U);
}

TEST(Wait, RingingNobodyLeavesTheBellAlone) {
  Bell bell{};
  ring(bell);
  EXPECT_EQ(bell.rings.load(), 0U);
}

TEST(Wait, ThereIsACore) { EXPECT_GE(usable_cores(), 1); }

}  // namespace
}  // namespace fvd::shm
