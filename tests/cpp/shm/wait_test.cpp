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

/// A word, the bell of who waits for it, and a wait that only ever succeeds asleep: the predicate
/// is not looked at before the waiter is counted as a sleeper, and the first yield takes so long
/// that the waiter gives yielding up.
struct SleepingPlace {
  std::atomic<std::uint32_t> word{0};
  Bell bell{};
  Waiter waiter{bell, false, microseconds(0)};
  int sliced = 0;  // waits whose sleep ended by itself although the word was there

  void wait_for(std::uint32_t value) {
    int looks = 0;
    auto last_check = Clock::time_point{};
    const auto ready = [&] {
      if (bell.sleepers.load() == 0) {
        const auto until = Clock::now() + microseconds(80);
        while (++looks == 2 && Clock::now() < until) pause_core();
        looks = std::min(looks, 2);
        return false;
      }
      return word.load(std::memory_order_seq_cst) == value;
    };
    waiter.wait(ready, [&] {
      last_check = Clock::now();
      return kNotSoon;
    });
    const bool slept = last_check != Clock::time_point{};
    if (slept && Clock::now() - last_check > milliseconds(95)) ++sliced;
  }
  void set(std::uint32_t value) {
    word.store(value, std::memory_order_seq_cst);
    ring(bell);
  }
};

TEST(Wait, NoWakeUpIsLostInAHundredThousand) {
  constexpr std::uint32_t kRounds = test::kSanitized ? 10000 : 100000;
  SleepingPlace ping;
  SleepingPlace pong;
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
  // A lost wake-up is made good by the 100 ms slice; a busy machine may look like one now and then.
  EXPECT_LE(ping.sliced + pong.sliced, 3);
  EXPECT_EQ(ping.bell.sleepers.load(), 0U);
  EXPECT_EQ(pong.bell.sleepers.load(), 0U);
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
