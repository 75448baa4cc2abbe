// What all parts of one rank's communicator share: the tables, who it is, and whether it is broken.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>
#include <string>

#include "comm/communicator.h"
#include "comm/error.h"
#include "comm/options.h"
#include "nccl/block_kernels.h"
#include "nccl/cuda_api.h"
#include "nccl/nccl_api.h"

namespace fvd::nccl {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

/// "2.0 s"
std::string seconds(milliseconds time);

/// The first failure of a group on this rank. Set once, by any thread.
class Fate {
 public:
  bool broken() const noexcept { return broken_.load(std::memory_order_acquire); }

  /// False if there was a failure already; that one stays.
  bool set(Kind kind, const std::string& words) noexcept;

  /// What runs on the device has been ended. To be said once set() has returned true.
  void settle() noexcept { settled_.store(true, std::memory_order_release); }
  bool settled() const noexcept { return settled_.load(std::memory_order_acquire); }

  /// If there is a failure, waits until it is settled: only then is memory the caller's again.
  /// Bounded; not to be called by who holds a lock that ending needs.
  void wait_settled() const noexcept;

  /// Throws the first failure as it was. For who learns of it by waiting.
  void check() const;

  /// Throws kAborted with the first failure. For who begins a new call.
  void check_usable(const std::string& where) const;

 private:
  std::atomic<bool> broken_{false};
  std::atomic<bool> settled_{false};
  mutable std::mutex mutex_;
  std::optional<Error> first_;
};

/// Shared by the communicator and its transfers, which may be dropped after it.
struct Context {
  NcclApi nccl;
  CudaApi cuda;
  BlockKernels kernels;
  GroupOptions group;
  int rank = 0;
  int size = 1;
  int device = 0;
  Fate fate;

  /// group "tp", rank 1 of 4
  std::string where() const {
    return text("group \"", group.name, "\", rank ", rank, " of ", size);
  }

  /// A failure in words that name the group and say what to do. What comes from CUDA does neither.
  std::string told(const std::string& words) const;

  /// Rank of the group as people know it: with its global rank where that is another.
  std::string rank_text(int member) const;

  milliseconds timeout_of(const Call& call) const noexcept {
    return call.timeout.count() > 0 ? call.timeout : group.timeout;
  }

  /// @throws Error(kLibrary; kPeerLost if NCCL blames a peer) unless success or in progress
  void check_nccl(Result result, const char* what, Comm comm = nullptr) const;
};

/// Locks `lock` if it can be had within `limit`. By looking again and again, as ThreadSanitizer
/// does not know the waits of std::timed_mutex.
void lock_within(std::unique_lock<std::mutex>& lock, milliseconds limit) noexcept;

/// How a failure may end: what every message of a broken group says last.
constexpr const char* kWayOut = "\nGroup is now unusable; destroy_process_group() and init again.";

inline CudaStream raw(Stream stream) noexcept { return static_cast<CudaStream>(stream.handle); }

/// A wait on the host: pauses that grow, the caller's interrupt every 100 ms, the deadline.
class HostWait {
 public:
  HostWait(const Call& call, milliseconds timeout)
      : call_(call), begin_(Clock::now()), timeout_(timeout) {}

  /// Sleeps a little. False once the time is up. Throws what the interrupt throws.
  bool pause();

  milliseconds waited() const {
    return std::chrono::duration_cast<milliseconds>(Clock::now() - begin_);
  }
  milliseconds timeout() const noexcept { return timeout_; }

 private:
  const Call& call_;
  const Clock::time_point begin_;
  const milliseconds timeout_;
  Clock::time_point next_interrupt_ = Clock::now() + milliseconds{100};
  unsigned turns_ = 0;
};

}  // namespace fvd::nccl
