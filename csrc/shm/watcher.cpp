#include "shm/watcher.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include "comm/error.h"
#include "comm/own_thread.h"
#include "shm/process.h"

namespace fvd::shm {
namespace {

// Without pidfds /proc is looked at this often; half of the 100 ms a death may stay unnoticed.
constexpr int kLookEveryMs = 50;

void bury(Peer& peer) {
  peer.last_words = describe_state(static_cast<pid_t>(peer.info.pid), peer.info.start_time);
  peer.dead.store(true, std::memory_order_seq_cst);
}

}  // namespace

Watcher::Watcher(std::function<void()> on_death)
    : on_death_(std::move(on_death)), wake_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  FVD_SYS_CHECK(wake_fd_, "eventfd for the watcher of dead peers");
}

Watcher::~Watcher() {
  if (thread_ != nullptr) {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    eventfd_write(wake_fd_, 1);
    thread_->join();
  }
  close(wake_fd_);
}

void Watcher::forget_thread() noexcept { static_cast<void>(thread_.release()); }

void Watcher::watch(const std::shared_ptr<Peer>& peer) {
  std::lock_guard lock(mutex_);
  peers_.push_back(peer);
  if (thread_ == nullptr) {
    thread_ = std::make_unique<std::thread>(start_own_thread("fastvideo-watch", [this] { run(); }));
  }
  eventfd_write(wake_fd_, 1);
}

std::vector<std::shared_ptr<Peer>> Watcher::living() {
  std::vector<std::shared_ptr<Peer>> found;
  std::erase_if(peers_, [&](const std::weak_ptr<Peer>& weak) {
    auto peer = weak.lock();
    if (peer == nullptr || peer->dead.load()) return true;
    found.push_back(std::move(peer));
    return false;
  });
  return found;
}

void Watcher::run() {
  while (true) {
    std::vector<std::shared_ptr<Peer>> peers;
    {
      std::lock_guard lock(mutex_);
      if (stop_) return;
      peers = living();
    }
    std::vector<pollfd> fds{{wake_fd_, POLLIN, 0}};
    bool all_have_pidfds = true;
    for (const auto& peer : peers) {
      fds.push_back({peer->pidfd, POLLIN, 0});  // a negative descriptor is skipped by poll
      all_have_pidfds = all_have_pidfds && peer->pidfd != -1;
    }
    const int ready = poll(fds.data(), fds.size(), all_have_pidfds ? -1 : kLookEveryMs);
    if (ready == -1 && errno != EINTR) {
      // No memory for that many, or more peers than descriptors allow: look at each in turn.
      std::this_thread::sleep_for(std::chrono::milliseconds(kLookEveryMs));
      for (pollfd& fd : fds) {
        if (poll(&fd, 1, 0) < 1) fd.revents = 0;
      }
    }
    eventfd_t ignored = 0;
    eventfd_read(wake_fd_, &ignored);
    bool anybody = false;
    for (std::size_t i = 0; i < peers.size(); ++i) {
      Peer& peer = *peers[i];
      const bool ended = peer.pidfd != -1
                             ? fds[i + 1].revents != 0
                             : has_ended(static_cast<pid_t>(peer.info.pid), peer.info.start_time);
      if (!ended) continue;
      bury(peer);
      anybody = true;
    }
    if (anybody) on_death_();
  }
}

}  // namespace fvd::shm
