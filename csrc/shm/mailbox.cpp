#include "shm/mailbox.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>

#include "shm/copy.h"

namespace fvd::shm {
namespace {

// How long a transfer nobody waits for is left to its owner before the mailbox's own thread takes it on: most
// are waited for at once, and a second driver would only be in the way.
constexpr std::chrono::milliseconds kLeaveToOwner{1};

constexpr std::uint64_t stamp(std::uint64_t generation, std::uint64_t chunks) {
  return generation << 32 | chunks;
}
std::uint64_t chunks_of(std::uint64_t bytes) {
  return (bytes + Outbox::kChunkBytes - 1) / Outbox::kChunkBytes;
}
/// Chunk `index` of `bytes`.
std::size_t chunk_bytes(std::uint64_t bytes, std::uint64_t index) {
  return std::min<std::uint64_t>(Outbox::kChunkBytes, bytes - index * Outbox::kChunkBytes);
}

}  // namespace

/// One transfer. All fields are guarded by the mailbox's mutex.
struct Mailbox::Item {
  enum class What { kSend, kRecv } what = What::kSend;
  DataType type = DataType::kUInt8;
  std::uint64_t bytes = 0;
  int peer = 0;  // destination, or source (kAnySource until matched)
  int tag = 0;
  int envelope = -1;
  std::uint64_t generation = 0;
  std::uint64_t chunks = 0;  // moved so far
  bool done = false;         // the owner may use the memory
  bool settled = false;      // nothing is left to drive
  std::exception_ptr error;
  virtual ~Item() = default;
};

struct Mailbox::Sending : Item {
  ConstBlock data;
};

struct Mailbox::Receiving : Item {
  Block data;
};

class Mailbox::Handle : public Transfer {
 public:
  Handle(std::shared_ptr<Mailbox> mailbox, std::shared_ptr<Item> item)
      : mailbox_(std::move(mailbox)), item_(std::move(item)) {}

  ~Handle() override {
    if (!mailbox_->domain_->usable()) return;
    std::lock_guard lock(mailbox_->mutex_);
    if (item_->done) return;
    // The memory is about to go away under a transfer that is half done.
    if (item_->envelope != -1) {
      mailbox_->fail_locked(Kind::kAborted, mailbox_->describe(*item_) + " was given up half way");
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
  if (!domain_->usable()) {  // a forked child has neither this thread nor the memory nor the locks
    static_cast<void>(thread_.release());
    return;
  }
  if (closed_) return;  // by the communicator; the group is gone
  closed_ = true;
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    const auto error = std::make_exception_ptr(
        Error(Kind::kAborted, "fastvideo: the process group was destroyed while a transfer was under way"));
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

/// Moves whatever can be moved. True if anything was.
bool Mailbox::drive_locked() {
  bool moved = false;
  bool again = true;
  while (again) {
    again = false;
    for (auto it = items_.begin(); it != items_.end();) {
      // A failed one is settled: its memory may be gone.
      again = (!(*it)->settled && drive(**it)) || again;
      it = (*it)->settled ? items_.erase(it) : std::next(it);
    }
    moved = moved || again;
  }
  if (moved) group_.ring_transfer();
  return moved;
}

bool Mailbox::drive(Item& item) {
  try {
    return item.what == Item::What::kSend ? drive(static_cast<Sending&>(item))
                                          : drive(static_cast<Receiving&>(item));
  } catch (const Error& error) {
    fail_locked(error.kind(), error.what());
    return true;
  }
}

bool Mailbox::drive(Sending& sending) {
  if (sending.envelope == -1 && !open_envelope(sending)) return false;
  Envelope& envelope = own().envelopes[sending.envelope];
  const std::uint64_t all = chunks_of(sending.bytes);
  // Acquire: pairs with the receiver's release once it has read a half.
  const std::uint64_t receipt =
      of(sending.peer).receipts[group_.rank()][sending.envelope].load(std::memory_order_seq_cst);
  const std::uint64_t taken = receipt >> 32 == sending.generation ? receipt & 0xffffffffU : 0;
  bool moved = false;
  while (sending.chunks < all && sending.chunks < taken + 2) {
    copy_range(own().chunks[sending.envelope][sending.chunks % 2], sending.data,
               sending.chunks * Outbox::kChunkBytes, chunk_bytes(sending.bytes, sending.chunks));
    ++sending.chunks;
    envelope.written.store(stamp(sending.generation, sending.chunks), std::memory_order_seq_cst);
    moved = true;
  }
  // All of it lies in the envelope: the caller's memory is free, whenever the receiver comes.
  if (sending.chunks == all) sending.done = true;
  if (taken == all + 1) {
    envelope.posted.store(2 * sending.generation, std::memory_order_seq_cst);
    senders_[sending.envelope].reset();
    sending.settled = true;
    moved = true;
  }
  return moved;
}

bool Mailbox::open_envelope(Sending& sending) {
  for (std::size_t e = 0; e < Outbox::kEnvelopes; ++e) {
    if (senders_[e] != nullptr) continue;
    sending.envelope = static_cast<int>(e);
    sending.generation = ++generations_[e];
    Envelope& envelope = own().envelopes[e];
    const auto destination = static_cast<std::uint64_t>(sending.peer);
    envelope.address.store(destination << 32 | static_cast<std::uint32_t>(sending.tag),
                           std::memory_order_relaxed);
    envelope.order.store(next_order_++, std::memory_order_relaxed);
    envelope.bytes.store(sending.bytes, std::memory_order_relaxed);
    envelope.type.store(static_cast<std::uint64_t>(sending.type), std::memory_order_relaxed);
    envelope.written.store(stamp(sending.generation, 0), std::memory_order_relaxed);
    // Release: pairs with the acquire in match; publishes the header.
    envelope.posted.store(2 * sending.generation + 1, std::memory_order_seq_cst);
    for (const auto& item : items_) {
      if (item.get() == &sending) senders_[e] = std::static_pointer_cast<Sending>(item);
    }
    return true;
  }
  return false;
}

/// Finds the oldest message for a receive that has none yet.
bool Mailbox::match(Receiving& receiving) {
  const auto wanted = static_cast<std::uint64_t>(group_.rank()) << 32 |
                      static_cast<std::uint32_t>(receiving.tag);
  // Twice: a message that became visible during the first look may be younger than one posted just before it.
  for (int look = 0; look < 2; ++look) {
    int best_source = -1;
    std::uint64_t best_order = 0;
    for (int source = 0; source < group_.size(); ++source) {
      if (source == group_.rank() || (receiving.peer >= 0 && receiving.peer != source)) continue;
      if (best_source != -1 && source != best_source) break;  // any source: the first that has one
      for (std::size_t e = 0; e < Outbox::kEnvelopes; ++e) {
        const Envelope& envelope = of(source).envelopes[e];
        const std::uint64_t posted = envelope.posted.load(std::memory_order_seq_cst);
        if (posted % 2 == 0 || envelope.address.load(std::memory_order_acquire) != wanted) continue;
        const std::uint64_t order = envelope.order.load(std::memory_order_acquire);
        const std::uint64_t generation = posted / 2;
        const std::uint64_t seen = own().receipts[source][e].load(std::memory_order_relaxed);
        // Looked at again: the words belong together only if the envelope was not used anew meanwhile.
        if (seen >> 32 == generation || envelope.posted.load(std::memory_order_acquire) != posted) continue;
        if (best_source != -1 && order > best_order) continue;
        best_source = source;
        best_order = order;
        receiving.envelope = static_cast<int>(e);
        receiving.generation = generation;
      }
    }
    if (best_source == -1) return false;
    if (look == 1) {
      receiving.peer = best_source;
      // Claims the message: a receipt of its generation hides it from the next receive.
      own().receipts[best_source][receiving.envelope].store(stamp(receiving.generation, 0),
                                                            std::memory_order_seq_cst);
    }
  }
  return true;
}

void Mailbox::take_header(Receiving& receiving) {
  const Envelope& envelope = of(receiving.peer).envelopes[receiving.envelope];
  const std::uint64_t bytes = envelope.bytes.load(std::memory_order_acquire);
  const auto type = static_cast<DataType>(envelope.type.load(std::memory_order_acquire) & 0xff);
  FVD_CHECK(bytes == receiving.bytes && type == receiving.type, kMismatch, "fastvideo: ",
            describe(receiving), ": expected ", receiving.bytes, " bytes of ", name(receiving.type),
            ", but ", group_.describe_member(receiving.peer), " sent ", bytes, " bytes of ", name(type),
            ". The output was not touched.\nGroup is now unusable; destroy_process_group() and init "
            "again.");
}

bool Mailbox::drive(Receiving& receiving) {
  bool moved = false;
  if (receiving.envelope == -1) {
    if (!match(receiving)) {
      receiving.envelope = -1;
      return false;
    }
    take_header(receiving);
    moved = true;
  }
  const Outbox& theirs = of(receiving.peer);
  const std::uint64_t all = chunks_of(receiving.bytes);
  auto& receipt = own().receipts[receiving.peer][receiving.envelope];
  // Acquire: pairs with the sender's store after it has filled a half.
  const std::uint64_t word = theirs.envelopes[receiving.envelope].written.load(std::memory_order_seq_cst);
  const std::uint64_t written = word >> 32 == receiving.generation ? word & 0xffffffffU : 0;
  while (receiving.chunks < std::min(all, written)) {
    copy_range(receiving.data, receiving.chunks * Outbox::kChunkBytes,
               theirs.chunks[receiving.envelope][receiving.chunks % 2],
               chunk_bytes(receiving.bytes, receiving.chunks));
    ++receiving.chunks;
    receipt.store(stamp(receiving.generation, receiving.chunks), std::memory_order_seq_cst);
    moved = true;
  }
  if (receiving.chunks == all) {
    receipt.store(stamp(receiving.generation, all + 1), std::memory_order_seq_cst);
    receiving.done = receiving.settled = true;
    moved = true;
  }
  return moved;
}

std::string Mailbox::describe(const Item& item) const {
  const bool send = item.what == Item::What::kSend;
  const std::string peer = item.peer < 0 ? "any rank" : group_.describe_member(item.peer);
  return text(send ? "send(" : "recv(", name(item.type), " x ", item.bytes / element_size(item.type),
              ", tag ", item.tag, send ? ") to " : ") from ", peer, " on ", group_.where());
}

/// Everything under way fails, and the group with it.
void Mailbox::fail_locked(Kind kind, const std::string& reason) {
  group_.break_with(kind, reason);
  const auto error = std::make_exception_ptr(Error(kind, reason));
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
  const auto timeout = call.timeout.count() > 0 ? call.timeout : group_.options().timeout;
  Clock::time_point deadline{};
  std::unique_lock lock(mutex_);
  if (item->done) {  // the group may be gone by now
    if (item->error) std::rethrow_exception(item->error);
    return;
  }
  ++drivers_;
  Waiter waiter(group_.own_bells().transfer, group_.core_for_each(), group_.domain().options().spin_us);
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
        const std::vector<int> missing = item->peer < 0 ? std::vector<int>{} : std::vector<int>{item->peer};
        group_.throw_timeout(describe(*item), missing, timeout);
      }
      return deadline - now;
    });
  } catch (const Error& error) {
    std::lock_guard guard(mutex_);
    fail_locked(error.kind(), error.what());
  } catch (...) {
    interrupted = std::current_exception();
    std::lock_guard guard(mutex_);
    fail_locked(Kind::kAborted, describe(*item) + " was interrupted");
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
      return !wanted();
    };
    waiter.wait(ready, [&] {
      std::lock_guard guard(mutex_);
      try {
        for (const auto& item : std::list(items_)) {
          if (!item->done) check(*item);
        }
      } catch (const Error& error) {
        fail_locked(error.kind(), error.what());
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
    pending.push_back({member.peer, member.slot, &theirs->receipts[group.rank()][e],
                       stamp(posted / 2, all + 1)});
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
