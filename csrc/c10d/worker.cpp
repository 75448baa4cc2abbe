#include "c10d/worker.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "comm/own_thread.h"

namespace fvd::c10d_ {

struct Worker::Queue {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> tasks;
  std::thread thread;
  std::uint64_t turns = 0;  // begun so far
  std::uint64_t turn = 0;   // which of them is on; 0: none
  bool stopping = false;
  std::atomic<bool> idle{true};  // written under mutex: no task queued, none has its turn

  // The caller holds the mutex.
  void end_turn() {
    turn = 0;
    // release: pairs with the acquire in idle(), so that what the tasks wrote is seen
    idle.store(tasks.empty(), std::memory_order_release);
    changed.notify_all();
  }

  // Gives the first task its turn. The caller holds `lock`, and again on return.
  void run_front(std::unique_lock<std::mutex>& lock) {
    auto task = std::move(tasks.front());
    tasks.pop_front();
    const auto mine = turn = ++turns;
    lock.unlock();
    std::exception_ptr error;
    try {
      task();
    } catch (...) {  // only what ends the wait of a thread that ran it
      error = std::current_exception();
    }
    task = nullptr;
    lock.lock();
    if (turn == mine) end_turn();
    if (error) std::rethrow_exception(error);
  }

  void run_until_stopped() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return turn == 0 && (stopping || !tasks.empty()); });
      if (tasks.empty()) return;
      run_front(lock);
    }
  }
};

Worker::Worker(const char* name) : queue_(std::make_shared<Queue>()), name_(name) {}

Worker::~Worker() {
  if (queue_) stop();
}

bool Worker::push(std::function<void()> task) {
  std::lock_guard lock(queue_->mutex);
  if (queue_->stopping) return false;
  if (!queue_->thread.joinable()) {
    queue_->thread = start_own_thread(name_, [queue = queue_] { queue->run_until_stopped(); });
  }
  queue_->tasks.push_back(std::move(task));
  queue_->idle.store(false, std::memory_order_relaxed);
  queue_->changed.notify_all();
  return true;
}

bool Worker::run_next() {
  const auto queue = queue_;  // the task may end the life of this object
  std::unique_lock lock(queue->mutex);
  if (queue->turn != 0 || queue->tasks.empty()) return false;
  queue->run_front(lock);
  return true;
}

void Worker::end_turn() noexcept {
  std::lock_guard lock(queue_->mutex);
  queue_->end_turn();
}

bool Worker::idle() const noexcept { return queue_->idle.load(std::memory_order_acquire); }

bool Worker::wait_idle(std::chrono::milliseconds limit) const {
  std::unique_lock lock(queue_->mutex);
  return queue_->changed.wait_for(lock, limit, [&] { return idle(); });
}

bool Worker::on_own_thread() const noexcept {
  std::lock_guard lock(queue_->mutex);
  return queue_->thread.get_id() == std::this_thread::get_id();
}

void Worker::stop() noexcept {
  std::thread thread;
  {
    std::lock_guard lock(queue_->mutex);
    queue_->stopping = true;
    thread = std::move(queue_->thread);
    queue_->changed.notify_all();
  }
  end_own_thread(std::move(thread));
}

void Worker::forget() noexcept {
  // The queue's lock may have been held by another thread at the fork: nothing of it can be used or
  // destroyed any more. One leak per fork.
  new std::shared_ptr<Queue>(std::move(queue_));
}

}  // namespace fvd::c10d_
