#include "c10d/transfer_work.h"

#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "c10d/translate_errors.h"

namespace fvd::c10d_ {

using Clock = std::chrono::steady_clock;

// Outlives the work if that is dropped before the transfer is done.
struct TransferWork::State {
  std::timed_mutex waiting;                    // held by the one thread that is inside the transfer
  std::shared_ptr<Communicator> communicator;  // must outlive the transfer; null once done
  std::unique_ptr<Transfer> transfer;          // null once done
  TensorView view;                             // keeps the memory
  std::shared_ptr<GroupRunner> runner;
  std::chrono::milliseconds timeout;
  bool sends;
  int rank;
  std::atomic<Clock::time_point> deadline{Clock::time_point::max()};  // of poll()

  mutable std::mutex mutex;  // guards what follows
  bool completed = false;
  std::exception_ptr error;
  int source = -1;
  FuturePtr future;
  std::function<void()> end_record;

  bool is_completed() const {
    std::lock_guard lock(mutex);
    return completed;
  }

  // Completes the future, with the user's callbacks, which may wait for anything: to be called
  // without `waiting`. May be null.
  using Settlement = std::function<void()>;

  // Runs `step` on the transfer, which ends it, and keeps how it ended. The caller holds `waiting`.
  template <typename Step>
  [[nodiscard]] Settlement finish(Step&& step);

  void wait_to_the_end(const std::function<void()>* interrupt);

  // True if the transfer has ended. Ends it past the deadline.
  bool poll(Settlement& settlement);

  // The same, for threads that may run the user's callbacks.
  bool poll_and_settle();

  std::string title() const {
    return text("fastvideo: ", sends ? "send" : "recv", " on group \"", runner->group(),
                "\", rank ", rank);
  }
};

template <typename Step>
TransferWork::State::Settlement TransferWork::State::finish(Step&& step) {
  std::exception_ptr failure;
  try {
    step();
    view.copy_back();
  } catch (const Error& problem) {
    runner->note_failure(problem.kind());
    failure = translated(std::current_exception());
  } catch (...) {
    failure = std::current_exception();
  }
  FuturePtr to_settle;
  std::function<void()> record;
  {
    std::lock_guard lock(mutex);
    completed = true;
    error = failure;
    if (!failure) source = transfer->source();
    to_settle = future;
    record = std::exchange(end_record, nullptr);
  }
  transfer.reset();
  communicator.reset();
  if (record) record();
  if (!to_settle) return nullptr;
  return [to_settle, failure, output = view.target.defined() ? view.target : view.memory] {
    settle(to_settle, failure, {output});
  };
}

void TransferWork::State::wait_to_the_end(const std::function<void()>* interrupt) {
  std::unique_lock lock(waiting, std::defer_lock);
  while (!is_completed() && !lock.try_lock_for(kInterruptInterval)) {
    if (interrupt != nullptr) (*interrupt)();
  }
  if (is_completed()) return;
  const auto settlement = finish([&] {
    Call call;
    call.timeout = timeout;
    call.interrupt = interrupt;
    transfer->wait(call);
  });
  lock.unlock();
  if (settlement) settlement();
}

bool TransferWork::State::poll(Settlement& settlement) {
  if (is_completed()) return true;
  std::unique_lock lock(waiting, std::try_to_lock);
  if (!lock) return false;  // somebody waits for it, who will complete it
  if (is_completed()) return true;
  if (Clock::now() >= deadline.load()) transfer->expire(timeout);
  if (!transfer->done()) return false;
  settlement = finish([&] {
    Call call;
    call.timeout = timeout;
    transfer->wait(call);  // done: returns or throws at once
  });
  return true;
}

bool TransferWork::State::poll_and_settle() {
  Settlement settlement;
  const bool done = poll(settlement);
  if (settlement) settlement();
  return done;
}

bool TransferWork::poll_aside() const {
  state_->deadline = Clock::now() + state_->timeout;
  return state_->runner->poll_aside([state = state_] {
    State::Settlement settlement;
    if (!state->poll(settlement)) return false;
    // Not here: this thread has other transfers to ask.
    if (settlement) state->runner->run_callbacks(std::move(settlement));
    return true;
  });
}

TransferWork::TransferWork(int rank, ::c10d::OpType type, const char* title,
                           std::shared_ptr<GroupRunner> runner,
                           std::shared_ptr<Communicator> communicator,
                           std::unique_ptr<Transfer> transfer, TensorView view,
                           std::chrono::milliseconds timeout)
    : Work(rank, type, title,
           title == nullptr ? std::nullopt : std::optional(std::vector<at::Tensor>{view.memory})),
      state_(std::make_shared<State>()) {
  state_->communicator = std::move(communicator);
  state_->transfer = std::move(transfer);
  state_->view = std::move(view);
  state_->runner = std::move(runner);
  state_->timeout = timeout;
  state_->sends = type == ::c10d::OpType::SEND;
  state_->rank = rank;
  state_->end_record = std::exchange(recordFunctionEndCallback_, nullptr);
}

TransferWork::~TransferWork() {
  if (state_->is_completed()) return;
  if (!state_->runner->in_home_process()) {
    new std::shared_ptr<State>(std::move(state_));  // the parent's: not ours to give up
    return;
  }
  try {
    if (state_.use_count() > 1) return;  // getFuture() has seen to it
    if (state_->poll_and_settle() || poll_aside()) return;
  } catch (...) {  // no thread to be had
  }
  // Given up here, as the state goes; the peer will learn.
}

bool TransferWork::isCompleted() { return state_->poll_and_settle(); }

bool TransferWork::isSuccess() const { return exception() == nullptr; }

std::exception_ptr TransferWork::exception() const {
  std::lock_guard lock(state_->mutex);
  return state_->error;
}

bool TransferWork::wait(std::chrono::milliseconds timeout) {
  const auto* interrupt = state_->runner->host().interrupt_hook();
  if (timeout > kNoTimeout) {
    // Polled, because a Transfer whose own wait ends by its deadline breaks the group.
    const auto end = Clock::now() + timeout;
    auto pause = std::chrono::microseconds{20};
    while (!isCompleted()) {
      if (Clock::now() >= end)
        C10_THROW_ERROR(DistBackendError,
                        text(state_->title(), " is not done after the ", timeout.count(),
                             " ms given to wait(); it goes on, wait() again or give more time"));
      if (interrupt != nullptr) (*interrupt)();
      std::this_thread::sleep_for(pause);
      pause = std::min(2 * pause, std::chrono::microseconds{1000});
    }
  } else {
    state_->wait_to_the_end(interrupt);
  }
  mark_waited(*this);
  if (const auto error = exception()) std::rethrow_exception(error);
  return true;
}

int TransferWork::sourceRank() const {
  std::lock_guard lock(state_->mutex);
  return state_->source;
}

FuturePtr TransferWork::getFuture() {
  FuturePtr future;
  {
    std::lock_guard lock(state_->mutex);
    if (state_->future) return state_->future;
    future = state_->future = make_future();
    if (state_->completed) {
      settle(future, state_->error, result());
      return future;
    }
  }
  // Somebody must complete it even if nobody waits: here, by its deadline, if nobody else can.
  bool seen_to = false;
  try {
    seen_to = poll_aside();             // not in a group that is closed
  } catch (const std::system_error&) {  // no thread to be had
  }
  if (!seen_to) state_->wait_to_the_end(state_->runner->host().interrupt_hook());
  return future;
}

std::vector<at::Tensor> TransferWork::result() {
  const auto& view = state_->view;
  return {view.target.defined() ? view.target : view.memory};
}

}  // namespace fvd::c10d_
