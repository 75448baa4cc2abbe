#include "c10d/callbacks.h"

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>
#include <system_error>
#include <utility>

#include "comm/own_thread.h"

namespace fvd::c10d_ {
namespace {

// Long enough that a row of callbacks shares one thread.
constexpr std::chrono::milliseconds kKeepThread{200};

// The queue whose task this thread runs.
thread_local const void* current = nullptr;

}  // namespace

struct Callbacks::Queue {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> tasks;
  std::size_t idle = 0;  // threads that wait for a task
  std::size_t busy = 0;  // threads that run one
  bool stopping = false;

  void run_tasks() {
    current = this;
    std::unique_lock lock(mutex);
    for (;;) {
      if (tasks.empty()) {
        ++idle;
        changed.wait_for(lock, kKeepThread, [&] { return stopping || !tasks.empty(); });
        --idle;
        if (tasks.empty()) return;
      }
      auto task = std::move(tasks.front());
      tasks.pop_front();
      ++busy;
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
      --busy;
      changed.notify_all();
    }
  }
};

Callbacks::Callbacks() : queue_(std::make_shared<Queue>()) {}

Callbacks::~Callbacks() {
  if (queue_) stop();
}

void Callbacks::run(std::function<void()> task) {
  std::unique_lock lock(queue_->mutex);
  queue_->tasks.push_back(std::move(task));
  if (queue_->idle >= queue_->tasks.size()) {
    queue_->changed.notify_all();
    return;
  }
  try {
    start_own_thread("fastvideo-then", [queue = queue_] { queue->run_tasks(); }).detach();
  } catch (const std::system_error&) {  // no thread to be had
    auto own = std::move(queue_->tasks.back());
    queue_->tasks.pop_back();
    lock.unlock();
    own();
  }
}

bool Callbacks::wait_idle(std::chrono::milliseconds limit) const {
  const std::size_t own = current == queue_.get() ? 1 : 0;
  std::unique_lock lock(queue_->mutex);
  return queue_->changed.wait_for(lock, limit,
                                  [&] { return queue_->tasks.empty() && queue_->busy <= own; });
}

void Callbacks::stop() noexcept {
  std::lock_guard lock(queue_->mutex);
  queue_->stopping = true;
  queue_->changed.notify_all();
}

void Callbacks::forget() noexcept {
  // As Worker::forget: the lock may have been held at the fork. One leak per fork.
  new std::shared_ptr<Queue>(std::move(queue_));
}

}  // namespace fvd::c10d_
