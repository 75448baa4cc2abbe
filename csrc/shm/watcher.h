// Notices the death of a peer's process: one thread per domain, asleep in poll() on everybody's
// pidfd.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "shm/peer.h"

namespace fvd::shm {

/// A pidfd becomes readable within about 0.1 ms of the death, whoever still holds the dead
/// process's sockets (a forked DataLoader worker does). Where pidfds are missing the thread looks
/// every 50 ms.
class Watcher {
 public:
  /// `on_death` runs on the watcher's thread after a peer has been marked dead.
  explicit Watcher(std::function<void()> on_death);
  ~Watcher();

  /// Holds the peer until it dies or the next one is to be watched; does not keep it from being
  /// forgotten for good.
  void watch(const std::shared_ptr<Peer>& peer);

  /// Lets go of the thread in a forked child, where it does not exist.
  void forget_thread() noexcept;

 private:
  void run();
  std::vector<std::shared_ptr<Peer>> living();

  std::function<void()> on_death_;
  int wake_fd_ = -1;
  std::mutex mutex_;
  bool stop_ = false;                       // guarded by mutex_
  std::vector<std::weak_ptr<Peer>> peers_;  // guarded by mutex_
  std::unique_ptr<std::thread> thread_;     // started with the first peer
};

}  // namespace fvd::shm
