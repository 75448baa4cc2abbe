// What is told about other processes: alive, stopped, dead and by what, or somebody else by now.
#include "shm/process.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/process_world.h"

namespace fvd::shm {
namespace {

/// A child that does nothing; it stays a zombie until the end of the test.
class Idle {
 public:
  explicit Idle(int exit_code = -1) : pid_(fork()) {
    FVD_SYS_CHECK(pid_, "forking a child");  // -1 would be everybody when it is sent a signal
    if (pid_ != 0) return;
    if (exit_code >= 0) _exit(exit_code);
    while (true) pause();
  }
  ~Idle() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }

  /// Sends the signal and waits until it has had its effect, without reaping.
  void send(int signal) {
    kill(pid_, signal);
    await();
  }
  void await() {
    siginfo_t info{};
    waitid(P_PID, static_cast<id_t>(pid_), &info, WSTOPPED | WEXITED | WNOWAIT);
  }

 private:
  pid_t pid_;
};

using ForkedProcess = test::ForkedTest;

TEST_F(ForkedProcess, AStoppedChildIsInStateT) {
  Idle child;
  const std::uint64_t started = start_time(child.pid());
  child.send(SIGSTOP);
  EXPECT_EQ(describe_state(child.pid(), started), "state T (stopped by a signal)");
  EXPECT_FALSE(has_ended(child.pid(), started));
}

TEST_F(ForkedProcess, AnUnreapedKilledChildTellsItsSignal) {
  Idle child;
  const std::uint64_t started = start_time(child.pid());
  child.send(SIGKILL);
  EXPECT_EQ(describe_state(child.pid(), started), "ended by signal 9 (Killed)");
  EXPECT_TRUE(has_ended(child.pid(), started));
}

TEST_F(ForkedProcess, AnUnreapedChildTellsItsExitCode) {
  Idle child(7);
  child.await();
  EXPECT_EQ(describe_state(child.pid(), start_time(child.pid())), "exited with code 7");
}

TEST_F(ForkedProcess, APidWithAnotherStartTimeIsAnotherProcess) {
  Idle child;
  const std::uint64_t started = start_time(child.pid());
  EXPECT_FALSE(has_ended(child.pid(), started));
  EXPECT_TRUE(has_ended(child.pid(), started + 1));
  EXPECT_EQ(describe_state(child.pid(), started + 1), "exited");
}

TEST_F(ForkedProcess, AReapedChildIsGone) {
  pid_t pid = 0;
  std::uint64_t started = 0;
  {
    const Idle child;
    pid = child.pid();
    started = start_time(pid);
    EXPECT_GT(started, 0U);
  }
  EXPECT_EQ(start_time(pid), 0U);
  EXPECT_TRUE(has_ended(pid, started));
  EXPECT_EQ(describe_state(pid, started), "exited");
  EXPECT_EQ(open_pidfd(pid), -1);
}

TEST_F(ForkedProcess, PidfdIsReadableAtDeathAlthoughTheChildIsAZombie) {
  Idle child;
  pollfd death{open_pidfd(child.pid()), POLLIN, 0};
  if (death.fd == -1) GTEST_SKIP() << "this kernel has no pidfds";
  EXPECT_EQ(poll(&death, 1, 0), 0);
  child.send(SIGKILL);
  EXPECT_EQ(poll(&death, 1, 1000), 1);
  close(death.fd);
}

TEST(Process, StartTimeOfThisProcessDoesNotChange) {
  EXPECT_GT(start_time(getpid()), 0U);
  EXPECT_EQ(start_time(getpid()), start_time(getpid()));
}

TEST(Process, NoSuchProcess) {
  EXPECT_EQ(start_time(0), 0U);
  EXPECT_TRUE(has_ended(-5, 1));
}

TEST(Process, HostAndNamespaceHaveNames) {
  EXPECT_EQ(boot_id().size(), 36U);
  EXPECT_EQ(boot_id(), boot_id());
  EXPECT_NE(pid_namespace(), 0U);
}

}  // namespace
}  // namespace fvd::shm
