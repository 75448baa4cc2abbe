#include "c10d/group_runner.h"

#include <pthread.h>

#include <algorithm>
#include <future>
#include <thread>
#include <utility>

namespace fvd::c10d_ {
namespace {

std::atomic<unsigned> fork_generation{0};

// Registered once per process; a fork counts up in the child only.
unsigned current_fork_generation() noexcept {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++fork_generation; });
  static_cast<void>(registered);
  return fork_generation.load(std::memory_order_relaxed);
}

constexpr std::chrono::milliseconds kCloseLimit{2000};

/// Whose turn it is, while it is. Only the thread itself finds its own id there.
class TurnOf {
 public:
  explicit TurnOf(std::atomic<std::thread::id>& word) : word_(word) {
    word_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  }
  ~TurnOf() { word_.store({}, std::memory_order_relaxed); }
  TurnOf(const TurnOf&) = delete;

 private:
  std::atomic<std::thread::id>& word_;
};

}  // namespace

GroupRunner::GroupRunner(std::unique_ptr<Communicator> communicator, std::string group,
                         const Host& host)
    : group_(std::move(group)),
      host_(host),
      fork_generation_(current_fork_generation()),
      communicator_(std::move(communicator)) {}

GroupRunner::~GroupRunner() {
  if (in_home_process()) {
    close(kCloseLimit);
    return;
  }
  // The parent's group is not this process's to close: leave everything as it is.
  new std::shared_ptr<Communicator>(std::move(communicator_));
  collectives_.forget();
  aside_.forget();
  callbacks_.forget();
}

bool GroupRunner::in_home_process() const noexcept {
  return fork_generation_ == fork_generation.load(std::memory_order_relaxed);
}

void GroupRunner::check_usable() const {
  FVD_CHECK(in_home_process(), kAborted, "fastvideo: group \"", group_,
            "\" belongs to the parent of this forked process; create the group in the process that "
            "uses it (multiprocessing start method \"spawn\")");
}

std::shared_ptr<Communicator> GroupRunner::communicator() const {
  check_usable();
  std::lock_guard lock(communicator_mutex_);
  if (!communicator_) throw_closed();
  return communicator_;
}

void GroupRunner::throw_closed() const {
  throw Error(Kind::kAborted,
              text("fastvideo: group \"", group_,
                   "\" was destroyed; create it again with init_process_group or new_group"));
}

void GroupRunner::execute(const Body& body, std::chrono::milliseconds timeout,
                          Interrupt interrupt) {
  const auto communicator = this->communicator();
  Call call;
  call.timeout = timeout;
  call.interrupt = interrupt;
  const TurnOf turn(turn_of_);
  try {
    body(*communicator, call);
  } catch (const Error& error) {
    note_failure(error.kind());
    throw;
  }
}

// The turn would never come to a call that a signal handler makes inside another one.
void GroupRunner::check_not_inside() const {
  FVD_CHECK(turn_of_.load(std::memory_order_relaxed) != std::this_thread::get_id(),
            kInvalidArgument, "fastvideo: group \"", group_,
            "\": a collective was called from inside another one on the same thread (by a signal "
            "handler?); let that one end first");
}

// A call that gives up here has not begun on this rank, but may have on others: the group is
// broken.
std::unique_lock<std::timed_mutex> GroupRunner::wait_for_turn(std::chrono::milliseconds timeout,
                                                              Interrupt interrupt) {
  std::unique_lock order(order_, std::try_to_lock);
  if (order.owns_lock()) return order;
  const auto end = std::chrono::steady_clock::now() + timeout;
  try {
    while (!order.try_lock_for(kInterruptInterval)) {
      if (interrupt != nullptr) (*interrupt)();
      FVD_CHECK(timeout.count() == 0 || std::chrono::steady_clock::now() < end, kTimeout,
                "fastvideo: a collective of group \"", group_, "\" waited ", timeout.count(),
                " ms for one that another thread runs. destroy_process_group() and init again.");
    }
  } catch (...) {
    abort("a collective gave up waiting for one that another thread ran");
    throw;
  }
  return order;
}

bool GroupRunner::try_run(const Body& body, std::chrono::milliseconds timeout) {
  check_usable();
  check_not_inside();
  if (!collectives_.idle()) return false;
  const auto* interrupt = host_.interrupt_hook();
  const auto order = wait_for_turn(timeout, interrupt);
  execute(body, timeout, interrupt);
  return true;
}

void GroupRunner::enqueue(Body body, std::chrono::milliseconds timeout,
                          std::function<void(std::exception_ptr)> done) {
  communicator();  // a closed group is the caller's error, here and now
  const bool queued = collectives_.push(
      [self = shared_from_this(), body = std::move(body), timeout,
       done = std::move(done)]() mutable { self->run_queued(std::move(body), timeout, done); });
  if (!queued) throw_closed();
}

void GroupRunner::run_queued(Body body, std::chrono::milliseconds timeout,
                             const std::function<void(std::exception_ptr)>& done) {
  std::exception_ptr error;
  // What ends the wait of this thread, which may be waiting for another call than this one.
  std::exception_ptr interruption;
  const auto* hook = host_.interrupt_hook();
  const std::function<void()> interrupt = [&] {
    try {
      (*hook)();
    } catch (...) {
      interruption = std::current_exception();
      throw;
    }
  };
  try {
    const auto order = wait_for_turn(timeout, hook == nullptr ? nullptr : &interrupt);
    execute(body, timeout, hook == nullptr ? nullptr : &interrupt);
  } catch (...) {
    error = std::current_exception();
  }
  if (interruption) {
    error = std::make_exception_ptr(
        Error(Kind::kAborted, text("fastvideo: a queued collective of group \"", group_,
                                   "\" was interrupted (Ctrl-C) by the thread that ran it")));
  }
  body = nullptr;  // its tensors are free before anybody hears that the call is done
  collectives_.end_turn();
  done(error);
  if (interruption) std::rethrow_exception(interruption);
}

void GroupRunner::help(const std::function<bool()>& enough) {
  if (!enough()) check_not_inside();
  while (!enough() && collectives_.run_next()) {
  }
}

void GroupRunner::run(const Body& body, std::chrono::milliseconds timeout) {
  if (try_run(body, timeout)) return;
  const auto promise = std::make_shared<std::promise<void>>();
  enqueue(body, timeout, [promise](std::exception_ptr error) {
    if (error) {
      promise->set_exception(error);
    } else {
      promise->set_value();
    }
  });
  auto future = promise->get_future();
  const auto ready = [&](std::chrono::milliseconds limit) {
    return future.wait_for(limit) == std::future_status::ready;
  };
  help([&] { return ready(std::chrono::milliseconds{0}); });
  const auto* interrupt = host_.interrupt_hook();
  while (!ready(kInterruptInterval)) {
    if (interrupt != nullptr) (*interrupt)();
  }
  future.get();
}

void GroupRunner::note_failure(Kind kind) noexcept {
  if (kind == Kind::kInvalidArgument || kind == Kind::kUnsupported) return;
  Kind none = Kind::kInvalidArgument;
  failure_.compare_exchange_strong(none, kind, std::memory_order_relaxed);
}

void GroupRunner::abort(const std::string& reason) noexcept {
  if (!in_home_process()) return;
  std::shared_ptr<Communicator> communicator;
  {
    std::lock_guard lock(communicator_mutex_);
    communicator = communicator_;
  }
  if (!communicator) return;
  note_failure(Kind::kAborted);
  communicator->abort(reason);
}

bool GroupRunner::wait_idle(std::chrono::milliseconds limit) const {
  const auto end = std::chrono::steady_clock::now() + limit;
  const auto left = [&] {
    return std::max(std::chrono::milliseconds{0},
                    std::chrono::duration_cast<std::chrono::milliseconds>(
                        end - std::chrono::steady_clock::now()));
  };
  // Who asks from a call of its own is not idle itself, and waits for the others only.
  return (collectives_.on_own_thread() || collectives_.wait_idle(left())) &&
         (aside_.on_own_thread() || aside_.wait_idle(left())) && callbacks_.wait_idle(left());
}

void GroupRunner::close(std::chrono::milliseconds limit) noexcept {
  if (!in_home_process()) return;
  host_.run_unlocked([&] {
    if (!wait_idle(limit))
      abort(text("destroyed while calls were under way for ", limit.count(), " ms"));
    std::shared_ptr<Communicator> communicator;
    {
      std::lock_guard lock(communicator_mutex_);
      communicator = std::move(communicator_);
    }
    collectives_.stop();
    aside_.stop();
    callbacks_.stop();
  });
}

}  // namespace fvd::c10d_
