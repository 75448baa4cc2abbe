#include "c10d/work.h"

#include <ATen/record_function.h>

#include <atomic>
#include <mutex>
#include <optional>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <utility>

#include "c10d/device_work.h"
#include "c10d/translate_errors.h"

namespace fvd::c10d_ {
namespace {

using Clock = std::chrono::steady_clock;

// Counts the calls of a coalesced future that are still under way.
struct Countdown {
  std::atomic<std::size_t> left;
  std::mutex mutex;
  std::exception_ptr error;
};

}  // namespace

const char* profiling_title(const char* title) { return at::hasCallbacks() ? title : nullptr; }

FuturePtr make_future() {
  return c10::make_intrusive<c10::ivalue::Future>(c10::ListType::ofTensors());
}

void settle(const FuturePtr& future, const std::exception_ptr& error,
            const std::vector<at::Tensor>& outputs) {
  if (error) {
    future->setError(error);
  } else {
    future->markCompleted(c10::IValue(outputs));
  }
}

void mark_waited(::c10d::Work& work) {
  if (::c10d::allow_inflight_collective_as_graph_input())
    ::c10d::unregister_work(WorkPtr::unsafe_reclaim_from_nonowning(&work));
}

CollectiveWork::CollectiveWork(int rank, ::c10d::OpType type, const char* operation,
                               const char* title,
                               const std::optional<std::vector<at::Tensor>>& inputs,
                               std::uint64_t sequence, std::vector<at::Tensor> outputs,
                               const Host& host)
    : Work(rank, type, title, inputs),
      operation_(operation),
      sequence_(sequence),
      outputs_(std::move(outputs)),
      host_(host) {}

void CollectiveWork::set_queued(std::shared_ptr<GroupRunner> runner) {
  std::lock_guard lock(mutex_);
  runner_ = std::move(runner);
}

void CollectiveWork::complete(std::exception_ptr error) {
  FuturePtr future;
  std::function<void()> end_record;
  std::shared_ptr<GroupRunner> runner;  // let go of outside the lock, too
  {
    std::lock_guard lock(mutex_);
    completed_ = true;
    exception_ = error;
    future = future_;
    runner = std::move(runner_);
    end_record = std::move(recordFunctionEndCallback_);
    recordFunctionEndCallback_ = nullptr;
  }
  cv_.notify_all();
  if (end_record) end_record();
  // Outside the lock: callbacks may be Python's, and may look at this work.
  if (future) settle(future, error, outputs_);
}

void CollectiveWork::wait_until_completed(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  if (completed_) return;
  if (const auto runner = runner_; runner && timeout == kNoTimeout) {
    lock.unlock();
    runner->help([this] { return isCompleted(); });
    lock.lock();
  }
  const auto* interrupt = host_.interrupt_hook();
  const auto end = Clock::now() + timeout;
  for (;;) {
    const bool bounded = timeout > kNoTimeout;
    if (!bounded && interrupt == nullptr) {
      cv_.wait(lock, [&] { return completed_; });
      return;
    }
    auto until = Clock::now() + kInterruptInterval;
    if (bounded && end < until) until = end;
    if (cv_.wait_until(lock, until, [&] { return completed_; })) return;
    if (bounded && Clock::now() >= end)
      C10_THROW_ERROR(
          DistBackendError,
          text("fastvideo: ", operation_, " on rank ", rank_, " is not done after the ",
               timeout.count(), " ms given to wait(); it goes on, wait() again or give more time"));
    if (interrupt != nullptr) {
      lock.unlock();
      (*interrupt)();
      lock.lock();
    }
  }
}

bool CollectiveWork::wait(std::chrono::milliseconds timeout) {
  wait_until_completed(timeout);
  mark_waited(*this);
  if (exception_) std::rethrow_exception(exception_);  // written before completed_, which we saw
  return true;
}

FuturePtr CollectiveWork::getFuture() {
  std::lock_guard lock(mutex_);
  if (!future_) {
    future_ = make_future();
    if (completed_) settle(future_, exception_, outputs_);  // nobody else has it yet
  }
  return future_;
}

CoalescedWork::CoalescedWork(int rank, std::vector<WorkPtr> works)
    : Work(rank, ::c10d::OpType::COALESCED), works_(std::move(works)) {}

bool CoalescedWork::isCompleted() {
  for (const auto& work : works_)
    if (!work->isCompleted()) return false;
  return true;
}

bool CoalescedWork::isSuccess() const { return exception() == nullptr; }

std::exception_ptr CoalescedWork::exception() const {
  for (const auto& work : works_)
    if (auto error = work->exception()) return error;
  return nullptr;
}

bool CoalescedWork::wait(std::chrono::milliseconds timeout) {
  const auto end = Clock::now() + timeout;
  for (const auto& work : works_) {
    auto left = timeout;
    if (timeout > kNoTimeout)  // at least 1 ms: 0 would mean "the call's own"
      left = std::max(std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now()),
                      std::chrono::milliseconds{1});
    work->wait(left);
  }
  mark_waited(*this);
  return true;
}

FuturePtr CoalescedWork::getFuture() {
  if (auto future = device_future(works_)) return future;
  auto future = make_future();
  if (works_.empty()) {
    settle(future, nullptr, {});
    return future;
  }
  auto countdown = std::make_shared<Countdown>();
  countdown->left = works_.size();
  for (const auto& work : works_) {
    work->getFuture()->addCallback([countdown, future, works = works_](auto& one) {
      if (one.hasError()) {
        std::lock_guard lock(countdown->mutex);
        if (!countdown->error) countdown->error = one.exception_ptr();
      }
      if (countdown->left.fetch_sub(1) > 1) return;
      std::vector<at::Tensor> outputs;
      for (const auto& done : works)
        for (auto& tensor : done->result()) outputs.push_back(tensor);
      settle(future, countdown->error, outputs);
    });
  }
  return future;
}

std::vector<at::Tensor> CoalescedWork::result() {
  std::vector<at::Tensor> outputs;
  for (const auto& work : works_)
    for (auto& tensor : work->result()) outputs.push_back(tensor);
  return outputs;
}

}  // namespace fvd::c10d_
