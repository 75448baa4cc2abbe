#include "shm/wait.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <fstream>
#include <string>

namespace fvd::shm {
namespace {

// The longest a lost wake-up, a dead peer the watcher missed or a deadline can stay unnoticed.
constexpr std::chrono::nanoseconds kSleepSlice = std::chrono::milliseconds(100);

/// The CPU quota of the cgroup in whole cores, rounded up; 0 if there is none.
int quota_cores() {
  std::ifstream unified("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (unified >> quota >> period && quota != "max" && period > 0) {
    return static_cast<int>((std::stod(quota) + period - 1) / period);
  }
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us");
  std::ifstream period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double quota_us = -1;
  if (quota_file >> quota_us && period_file >> period && quota_us > 0 && period > 0) {
    return static_cast<int>((quota_us + period - 1) / period);
  }
  return 0;
}

}  // namespace

int usable_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  int cores = 1;
  if (sched_getaffinity(0, sizeof(mask), &mask) == 0) cores = std::max(1, CPU_COUNT(&mask));
  const int quota = quota_cores();
  return quota > 0 ? std::min(cores, quota) : cores;
}

void ring_always(Bell& bell) noexcept {
  bell.rings.fetch_add(1, std::memory_order_seq_cst);
  syscall(SYS_futex, &bell.rings, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Waiter::sleep_once(std::uint32_t rings, Clock::duration longest) noexcept {
  const auto slice =
      std::clamp<std::chrono::nanoseconds>(longest, std::chrono::nanoseconds(0), kSleepSlice);
  const timespec relative{0, static_cast<long>(slice.count())};  // below one second
  // EAGAIN (rung meanwhile), EINTR (a signal) and ETIMEDOUT all mean: look again.
  syscall(SYS_futex, &bell_->rings, FUTEX_WAIT, rings, &relative, nullptr, 0);
}

void Waiter::yield_core() noexcept { sched_yield(); }

}  // namespace fvd::shm
