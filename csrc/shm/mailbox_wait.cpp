// Who drives the transfers: whoever waits for one, whoever polls one, and else the mailbox's
// thread.
#include <algorithm>
#include <exception>

#include "comm/own_thread.h"
#include "shm/mailbox.h"
#include "shm/transfer_item.h"

namespace fvd::shm {
namespace {

// How long a transfer nobody waits for is left to its owner before the mailbox's own thread takes
// it on: most are waited for at once, and a second driver would only be in the way.
constexpr std::chrono::milliseconds kLeaveToOwner{1};

// How often a transfer that is only polled is checked for a dead peer.
constexpr std::chrono::milliseconds kCheckPolled{100};

// A wait that finds work again and again looks at deadlines and Ctrl-C after that many drives, of a
// few hundred microseconds each.
constexpr int kDrivesAtOnce = 64;

}  // namespace

/// Throws if the transfer cannot end any more.
void Mailbox::check(TransferItem& item) {
  const auto ready = [&] { return drive_locked() || item.done; };
  group_.check_rank(item.peer, ready, describe(item));
}

/// Whether a transfer is done, after a look. Whoever asks again and again learns of a dead peer
/// too.
bool Mailbox::poll_locked(TransferItem& item) {
  if (!item.done) drive_locked();
  if (item.done) return true;
  const auto now = Clock::now();
  if (item.next_check == Clock::time_point{}) item.next_check = now + kCheckPolled;
  if (now < item.next_check) return false;
  item.next_check = now + kCheckPolled;
  try {
    check(item);
  } catch (const Error& error) {
    fail_locked(error);
  }
  return item.done;
}

/// check() for all that is under way, once for each peer.
void Mailbox::check_everybody() {
  std::vector<bool> checked(links_.size() + 1);
  for (const auto& item : std::list(items_)) {
    const auto peer = static_cast<std::size_t>(item->peer + 1);  // 0: any
    if (item->done || checked[peer]) continue;
    checked[peer] = true;
    check(*item);
  }
}

void Mailbox::wait(const std::shared_ptr<TransferItem>& item, const Call& call) {
  Clock::time_point deadline{};
  std::unique_lock lock(mutex_);
  if (item->done) {  // the group may be gone by now
    if (item->error) std::rethrow_exception(item->error);
    return;
  }
  const auto timeout = call.timeout.count() > 0 ? call.timeout : group_.options().timeout;
  ++drivers_;
  Waiter waiter(group_.own_bells().transfer, group_.core_for_each(),
                group_.domain().options().spin_us);
  lock.unlock();
  auto driven = Driven::kIdle;
  const auto ready = [&] {
    driven = drive_until([&] { return item->done; });
    return driven == Driven::kEnough;
  };
  std::exception_ptr interrupted;
  try {
    waiter.wait(ready, [&] {
      const auto now = Clock::now();
      if (deadline == Clock::time_point{}) deadline = now + timeout;
      if (call.interrupt != nullptr && *call.interrupt) (*call.interrupt)();
      std::lock_guard guard(mutex_);
      if (item->done) return Clock::duration(0);
      check(*item);
      if (!item->done && now >= deadline) throw_timeout(*item, timeout);
      return driven == Driven::kBusy ? Clock::duration(0) : deadline - now;
    });
  } catch (const Error& error) {
    std::lock_guard guard(mutex_);
    if (!item->done) fail_locked(error);  // else the group may be gone
  } catch (...) {
    interrupted = std::current_exception();
    std::lock_guard guard(mutex_);
    if (!item->done) fail_locked(Error(Kind::kAborted, describe(*item) + " was interrupted"));
  }
  lock.lock();
  --drivers_;
  changed_.notify_all();
  const std::exception_ptr error = interrupted ? interrupted : item->error;
  lock.unlock();
  if (error) std::rethrow_exception(error);
}

void Mailbox::throw_timeout(const TransferItem& item, std::chrono::milliseconds waited) const {
  std::vector<int> awaited;
  for (int r = 0; r < group_.size(); ++r) {
    if (r == item.peer || (item.peer < 0 && r != group_.rank())) awaited.push_back(r);
  }
  group_.throw_transfer_timeout(describe(item), awaited, waited);
}

void Mailbox::expire(TransferItem& item, std::chrono::milliseconds waited) {
  std::lock_guard lock(mutex_);
  if (item.done) return;
  try {
    check(item);  // a dead peer says more than a deadline
    if (!item.done) throw_timeout(item, waited);
  } catch (const Error& error) {
    fail_locked(error);
  }
}

/// Drives until `enough`, which is looked at under the mutex, or nothing moves, or for a while.
template <typename Enough>
Mailbox::Driven Mailbox::drive_until(Enough&& enough) {
  for (int drive = 0; drive < kDrivesAtOnce; ++drive) {
    std::lock_guard lock(mutex_);
    if (enough()) return Driven::kEnough;
    if (!drive_locked()) return enough() ? Driven::kEnough : Driven::kIdle;
  }
  return Driven::kBusy;
}

/// The mailbox's thread: drives while there is something to drive and nobody waits for it.
void Mailbox::run() {
  Waiter waiter(group_.own_bells().transfer, false, std::chrono::microseconds(0));
  std::unique_lock lock(mutex_);
  const auto wanted = [&] { return stop_ || (!items_.empty() && drivers_ == 0); };
  while (!stop_) {
    changed_.wait(lock, wanted);
    if (changed_.wait_for(lock, kLeaveToOwner, [&] { return stop_ || !wanted(); })) continue;
    lock.unlock();
    auto driven = Driven::kIdle;
    const auto ready = [&] {
      driven = drive_until([&] { return stop_ || !wanted(); });
      return driven == Driven::kEnough;
    };
    waiter.wait(ready, [&] {
      std::lock_guard guard(mutex_);
      try {
        check_everybody();
      } catch (const Error& error) {
        fail_locked(error);
      }
      return driven == Driven::kBusy ? Clock::duration(0) : Clock::duration(std::chrono::hours(1));
    });
    lock.lock();
  }
}

void Mailbox::start_thread() {
  try {
    thread_ = std::make_unique<std::thread>(start_own_thread("fastvideo-mail", [this] { run(); }));
  } catch (const std::exception& error) {
    fail_locked(Error(Kind::kSystem, text("fastvideo: starting the thread for messages on ",
                                          group_.where(), ": ", error.what())));
  }
}

}  // namespace fvd::shm
