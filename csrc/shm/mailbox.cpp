#include "shm/mailbox.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>

#include "shm/transfer_item.h"

namespace fvd::shm {
namespace {

// How long a transfer nobody waits for is left to its owner before the mailbox's own thread takes
// it on: most are waited for at once, and a second driver would only be in the way.
constexpr std::chrono::milliseconds kLeaveToOwner{1};

}  // namespace

class Mailbox::Handle : public Transfer {
 public:
  Handle(std::shared_ptr<Mailbox> mailbox, std::shared_ptr<Item> item)
      : mailbox_(std::move(mailbox)), item_(std::move(item)) {}

  ~Handle() override {
    if (!mailbox_->domain_->usable()) {
      forget(std::move(mailbox_));
      return;
    }
    std::lock_guard lock(mailbox_->mutex_);
    if (item_->done) return;
    // The memory is about to go away under a transfer that is half done.
    if (item_->envelope != -1) {
      mailbox_->fail_locked(
          Error(Kind::kAborted, mailbox_->describe(*item_) + " was given up half way"));
    }
    item_->done = item_->settled = true;
    mailbox_->items_.remove(item_);
  }

  bool done() override {
    std::lock_guard lock(mailbox_->mutex_);
    if (!item_->done) mailbox_->drive_locked();
    return item_->done;
  }

  void wait(const Call& call) override { mailbox_->wait(item_, call); }

  int source() const override {
    std::lock_guard lock(mailbox_->mutex_);
    return item_->peer;
  }

 private:
  std::shared_ptr<Mailbox> mailbox_;
  std::shared_ptr<Item> item_;
};

Mailbox::Mailbox(Group& group)
    : group_(group), domain_(group.shared_domain()), own_(group.outbox()) {}

Mailbox::~Mailbox() { close(); }

void Mailbox::close() noexcept {
  if (closed_) return;  // by the communicator; the group is gone
  closed_ = true;
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    const auto error = std::make_exception_ptr(
        Error(Kind::kAborted,
              "fastvideo: the process group was destroyed while a transfer was under way"));
    for (const auto& item : items_) {
      if (!item->done) item->error = error;
      item->done = item->settled = true;
    }
    items_.clear();
  }
  changed_.notify_all();
  ring_always(group_.own_bells().transfer);
  if (thread_ != nullptr) thread_->join();
  thread_.reset();
}

std::unique_ptr<Transfer> Mailbox::send(ConstBlock data, DataType type, int destination, int tag) {
  auto sending = std::make_shared<Sending>();
  sending->what = Item::What::kSend;
  sending->type = type;
  sending->bytes = data.bytes();
  sending->peer = destination;
  sending->tag = tag;
  sending->data = data;
  start(sending);
  return std::make_unique<Handle>(shared_from_this(), sending);
}

std::unique_ptr<Transfer> Mailbox::recv(Block data, DataType type, int source, int tag) {
  auto receiving = std::make_shared<Receiving>();
  receiving->what = Item::What::kRecv;
  receiving->type = type;
  receiving->bytes = data.bytes();
  receiving->peer = source;
  receiving->tag = tag;
  receiving->data = data;
  start(receiving);
  return std::make_unique<Handle>(shared_from_this(), receiving);
}

void Mailbox::start(const std::shared_ptr<Item>& item) {
  std::lock_guard lock(mutex_);
  items_.push_back(item);
  drive_locked();
  if (item->settled) return;
  if (thread_ == nullptr) {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // Ctrl-C belongs to the threads that wait
    thread_ = std::make_unique<std::thread>([this] { run(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_setname_np(thread_->native_handle(), "fastvideo-mail");
  }
  changed_.notify_all();
}

std::string Mailbox::describe(const Item& item) const {
  const bool send = item.what == Item::What::kSend;
  const std::string peer = item.peer < 0 ? "any rank" : group_.describe_member(item.peer);
  return text(send ? "send(" : "recv(", name(item.type), " x ",
              item.bytes / element_size(item.type), ", tag ", item.tag, send ? ") to " : ") from ",
              peer, " on ", group_.where());
}

/// Everything under way fails, and the group with it.
void Mailbox::fail_locked(const Error& cause) {
  group_.break_with(cause);
  const auto error = std::make_exception_ptr(cause);
  for (const auto& item : items_) {
    if (!item->done) item->error = error;
    item->done = item->settled = true;
  }
  changed_.notify_all();
}

/// Throws if the transfer cannot end any more.
void Mailbox::check(Item& item) {
  const auto ready = [&] { return drive_locked() || item.done; };
  group_.check_rank(item.peer, ready, describe(item));
}

void Mailbox::wait(const std::shared_ptr<Item>& item, const Call& call) {
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
  const auto ready = [&] {
    std::lock_guard guard(mutex_);
    return item->done || (drive_locked() && item->done);
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
      if (!item->done && now >= deadline) {
        const std::vector<int> missing =
            item->peer < 0 ? std::vector<int>{} : std::vector<int>{item->peer};
        group_.throw_timeout(describe(*item), missing, timeout);
      }
      return deadline - now;
    });
  } catch (const Error& error) {
    std::lock_guard guard(mutex_);
    fail_locked(error);
  } catch (...) {
    interrupted = std::current_exception();
    std::lock_guard guard(mutex_);
    fail_locked(Error(Kind::kAborted, describe(*item) + " was interrupted"));
  }
  lock.lock();
  --drivers_;
  changed_.notify_all();
  const std::exception_ptr error = interrupted ? interrupted : item->error;
  lock.unlock();
  if (error) std::rethrow_exception(error);
}

/// The mailbox's thread: drives while there is something to drive and nobody waits for it.
void Mailbox::run() {
  Waiter waiter(group_.own_bells().transfer, false, std::chrono::microseconds(0));
  std::unique_lock lock(mutex_);
  while (!stop_) {
    const auto wanted = [&] { return stop_ || (!items_.empty() && drivers_ == 0); };
    changed_.wait(lock, wanted);
    if (changed_.wait_for(lock, kLeaveToOwner, [&] { return stop_ || !wanted(); })) continue;
    lock.unlock();
    const auto ready = [&] {
      std::lock_guard guard(mutex_);
      drive_locked();
      return stop_ || !wanted();
    };
    waiter.wait(ready, [&] {
      std::lock_guard guard(mutex_);
      try {
        for (const auto& item : std::list(items_)) {
          if (!item->done) check(*item);
        }
      } catch (const Error& error) {
        fail_locked(error);
      }
      return Clock::duration(std::chrono::hours(1));
    });
    lock.lock();
  }
}

std::function<bool()> Mailbox::drained(const Group& group) {
  struct Pending {
    std::shared_ptr<Peer> peer;
    const Slot* slot;
    const std::atomic<std::uint64_t>* receipt;
    std::uint64_t done;  // the receipt's value once the receiver needs the envelope no more
  };
  std::vector<Pending> pending;
  const auto* own = reinterpret_cast<const Outbox*>(group.member(group.rank()).outbox());
  for (std::size_t e = 0; e < Outbox::kEnvelopes; ++e) {
    const Envelope& envelope = own->envelopes[e];
    const std::uint64_t posted = envelope.posted.load(std::memory_order_acquire);
    if (posted % 2 == 0) continue;
    const auto to = static_cast<int>(envelope.address.load(std::memory_order_acquire) >> 32);
    const Member& member = group.member(to);
    const auto* theirs = reinterpret_cast<const Outbox*>(member.outbox());
    const std::uint64_t all = chunks_of(envelope.bytes.load(std::memory_order_acquire));
    pending.push_back(
        {member.peer, member.slot, &theirs->receipts[group.rank()][e], stamp(posted / 2, all + 1)});
  }
  return [pending, epoch = group.epoch()] {
    return std::all_of(pending.begin(), pending.end(), [&](const Pending& p) {
      const State& state = p.slot->state;
      return p.receipt->load(std::memory_order_acquire) == p.done || p.peer->dead.load() ||
             state.epoch.load(std::memory_order_acquire) != epoch ||
             state.code.load(std::memory_order_acquire) != State::kActive;
    });
  };
}

}  // namespace fvd::shm
