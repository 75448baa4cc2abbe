#include "c10d/poller.h"

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <list>
#include <mutex>
#include <thread>
#include <utility>

#include "comm/own_thread.h"

namespace fvd::c10d_ {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kShortest{20};
constexpr std::chrono::microseconds kLongest{1000};
// After a round that took long, because there are many steps, the core is left to others longer.
constexpr int kRestFactor = 4;
constexpr std::chrono::milliseconds kLongestRest{20};

}  // namespace

struct Poller::Queue {
  using Steps = std::list<std::function<bool()>>;

  std::mutex mutex;
  std::condition_variable changed;
  Steps added;           // not asked yet
  std::size_t left = 0;  // not done yet, these included
  std::thread thread;
  bool stopping = false;

  void run_until_stopped() {
    Steps steps;  // this thread's own
    Clock::duration pause = kShortest;
    std::unique_lock lock(mutex);
    for (;;) {
      if (steps.empty()) {
        changed.wait(lock, [&] { return stopping || !added.empty(); });
      } else {
        changed.wait_for(lock, pause, [&] { return !added.empty(); });
      }
      pause = added.empty() ? std::min<Clock::duration>(2 * pause, kLongest) : kShortest;
      steps.splice(steps.end(), added);
      if (steps.empty()) return;
      lock.unlock();
      const auto begun = Clock::now();
      const std::size_t done = steps.remove_if([](const auto& step) { return step(); });
      const auto took = Clock::now() - begun;
      pause = done != 0
                  ? kShortest
                  : std::max(pause, std::min<Clock::duration>(kRestFactor * took, kLongestRest));
      lock.lock();
      left -= done;
      if (left == 0) changed.notify_all();
    }
  }
};

Poller::Poller(const char* name) : queue_(std::make_shared<Queue>()), name_(name) {}

Poller::~Poller() {
  if (queue_) stop();
}

bool Poller::push(std::function<bool()> step) {
  std::lock_guard lock(queue_->mutex);
  if (queue_->stopping) return false;
  if (!queue_->thread.joinable()) {
    queue_->thread = start_own_thread(name_, [queue = queue_] { queue->run_until_stopped(); });
  }
  queue_->added.push_back(std::move(step));
  ++queue_->left;
  queue_->changed.notify_all();
  return true;
}

bool Poller::wait_idle(std::chrono::milliseconds limit) const {
  std::unique_lock lock(queue_->mutex);
  return queue_->changed.wait_for(lock, limit, [&] { return queue_->left == 0; });
}

bool Poller::on_own_thread() const noexcept {
  std::lock_guard lock(queue_->mutex);
  return queue_->thread.get_id() == std::this_thread::get_id();
}

void Poller::stop() noexcept {
  std::thread thread;
  {
    std::lock_guard lock(queue_->mutex);
    queue_->stopping = true;
    thread = std::move(queue_->thread);
    queue_->changed.notify_all();
  }
  end_own_thread(std::move(thread));
}

void Poller::forget() noexcept {
  // As Worker::forget: the lock may have been held at the fork. One leak per fork.
  new std::shared_ptr<Queue>(std::move(queue_));
}

}  // namespace fvd::c10d_
