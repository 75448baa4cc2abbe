// A death is noticed at once, whoever lives on with the dead process's descriptors.
#include "shm/watcher.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <future>

#include "shm/process.h"
#include "support/process_world.h"

namespace fvd::shm {
namespace {

std::shared_ptr<Peer> peer_of(pid_t pid, bool with_pidfd) {
  auto peer = std::make_shared<Peer>();
  peer->info.pid = static_cast<std::uint64_t>(pid);
  peer->info.start_time = start_time(pid);
  if (with_pidfd) peer->pidfd = open_pidfd(pid);
  return peer;
}

/// A process that waits; with a child of its own that holds all it had open.
std::string idle_with_child(test::ForkedRank& rank) {
  const pid_t grandchild = fork();
  FVD_SYS_CHECK(grandchild, "forking a grandchild");
  if (grandchild == 0) {
    for (int i = 0; i < 50; ++i) usleep(100 * 1000);
    _exit(0);
  }
  rank.store.set("grandchild", std::to_string(grandchild));
  rank.await("never");
  return "";
}

class ForkedWatcher : public test::ForkedTest {
 protected:
  /// Seconds from the signal to the watcher's call.
  double kill_and_measure(bool with_pidfd) {
    test::ForkedRanks child(1, idle_with_child);
    const auto grandchild =
        static_cast<pid_t>(std::stol(child.store().wait_for({"grandchild"}, limit_).at(0)));
    std::promise<std::chrono::steady_clock::time_point> noticed;
    double took = 1e9;
    {
      Watcher watcher([&] { noticed.set_value(std::chrono::steady_clock::now()); });
      const auto peer = peer_of(child.pid(0), with_pidfd);
      watcher.watch(peer);
      usleep(20 * 1000);
      EXPECT_FALSE(peer->dead.load());
      const auto killed = child.signal(0, SIGKILL);
      auto future = noticed.get_future();
      if (future.wait_for(limit_) == std::future_status::ready) {
        took = test::seconds_between(killed, future.get());
        EXPECT_TRUE(peer->dead.load());
        EXPECT_EQ(peer->last_words, "ended by signal 9 (Killed)");
      }
    }
    EXPECT_EQ(::kill(grandchild, 0), 0) << "the grandchild was to live on";
    ::kill(grandchild, SIGKILL);
    return took;
  }

  const std::chrono::seconds limit_{5};
};

TEST_F(ForkedWatcher, ADeathIsNoticedWithinATenthOfASecondAlthoughAGrandchildLives) {
  EXPECT_LT(kill_and_measure(true), 0.1);
}

TEST_F(ForkedWatcher, AlsoWhereTheKernelHasNoPidfds) { EXPECT_LT(kill_and_measure(false), 0.1); }

TEST_F(ForkedWatcher, OneOfSeveralDies) {
  test::ForkedRanks children(3, [](test::ForkedRank& rank) -> std::string {
    rank.await("never");
    return "";
  });
  std::promise<void> noticed;
  Watcher watcher([&] { noticed.set_value(); });
  std::vector<std::shared_ptr<Peer>> peers;
  for (int r = 0; r < 3; ++r) {
    peers.push_back(peer_of(children.pid(r), true));
    watcher.watch(peers.back());
  }
  children.signal(1, SIGKILL);
  ASSERT_EQ(noticed.get_future().wait_for(limit_), std::future_status::ready);
  EXPECT_FALSE(peers[0]->dead.load());
  EXPECT_TRUE(peers[1]->dead.load());
  EXPECT_FALSE(peers[2]->dead.load());
}

TEST_F(ForkedWatcher, ThreadTakesNoSignals) {
  test::ForkedRanks child(1, [](test::ForkedRank& rank) -> std::string {
    rank.await("never");
    return "";
  });
  static std::atomic<bool> by_main_thread;
  static const pthread_t main_thread = pthread_self();
  const auto before = signal(
      SIGUSR1, [](int) { by_main_thread = pthread_equal(pthread_self(), main_thread) != 0; });
  Watcher watcher([] {});
  const auto peer = peer_of(child.pid(0), true);
  watcher.watch(peer);
  ::kill(getpid(), SIGUSR1);
  for (int i = 0; i < 100 && !by_main_thread; ++i) usleep(1000);
  EXPECT_TRUE(by_main_thread.load());
  signal(SIGUSR1, before);
}

TEST(Watcher, WithoutPeersStartsNoThread) {
  const std::string tasks = "/proc/self/task";
  const auto count = [&] { return std::distance(std::filesystem::directory_iterator(tasks), {}); };
  const auto before = count();
  const Watcher watcher([] {});
  EXPECT_EQ(count(), before);
}

}  // namespace
}  // namespace fvd::shm
