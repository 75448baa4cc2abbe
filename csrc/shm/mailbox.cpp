#include "shm/mailbox.h"

#include <algorithm>

#include "shm/match_table.h"
#include "shm/transfer_item.h"

namespace fvd::shm {
class Mailbox::Handle : public Transfer {
 public:
  Handle(std::shared_ptr<Mailbox> mailbox, std::shared_ptr<TransferItem> item)
      : mailbox_(std::move(mailbox)), item_(std::move(item)) {}

  ~Handle() override {
    if (mailbox_->domain_->usable()) {
      mailbox_->give_up(item_);
    } else {
      forget(std::move(mailbox_));
    }
  }

  bool done() override {
    std::lock_guard lock(mailbox_->mutex_);
    return mailbox_->poll_locked(*item_);
  }

  void wait(const Call& call) override { mailbox_->wait(item_, call); }

  void expire(std::chrono::milliseconds waited) override { mailbox_->expire(*item_, waited); }

  int source() const override {
    std::lock_guard lock(mailbox_->mutex_);
    return item_->peer;
  }

 private:
  std::shared_ptr<Mailbox> mailbox_;
  std::shared_ptr<TransferItem> item_;
};

Mailbox::Mailbox(Group& group)
    : group_(group),
      domain_(group.shared_domain()),
      own_(group.open_outbox()),
      links_(static_cast<std::size_t>(group.size())),
      table_(std::make_unique<MatchTable>(group.size())) {
  for (std::size_t r = 0; r < links_.size(); ++r) links_[r].peer = static_cast<int>(r);
}

Mailbox::~Mailbox() { close(); }

void Mailbox::close() noexcept {
  if (closed_) return;  // by the communicator; the group is gone
  closed_ = true;
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
    end_all(std::make_exception_ptr(
        Error(Kind::kAborted,
              "fastvideo: the process group was destroyed while a transfer was under way")));
  }
  changed_.notify_all();
  ring_always(group_.own_bells().transfer);
  if (thread_ != nullptr) thread_->join();
  thread_.reset();
}

std::unique_ptr<Transfer> Mailbox::send(ConstBlock data, DataType type, int destination, int tag) {
  auto sending = std::make_shared<Sending>();
  sending->type = type;
  sending->bytes = data.bytes();
  sending->peer = destination;
  sending->tag = tag;
  sending->data = data;
  auto handle = std::make_unique<Handle>(shared_from_this(), sending);  // first: it may throw
  start(sending);
  return handle;
}

std::unique_ptr<Transfer> Mailbox::recv(Block data, DataType type, int source, int tag) {
  auto receiving = std::make_shared<Receiving>();
  receiving->type = type;
  receiving->bytes = data.bytes();
  receiving->peer = source;
  receiving->tag = tag;
  receiving->data = data;
  auto handle = std::make_unique<Handle>(shared_from_this(), receiving);  // first: it may throw
  start(receiving);
  return handle;
}

void Mailbox::start(const std::shared_ptr<TransferItem>& item) {
  std::lock_guard lock(mutex_);
  item->place = items_.insert(items_.end(), item);
  begin(item);
  if (item->done) return;
  if (thread_ == nullptr) start_thread();
  changed_.notify_all();
}

std::string Mailbox::describe(const TransferItem& item) const {
  const bool send = item.what == TransferItem::What::kSend;
  const std::string peer = item.peer < 0 ? "any rank" : group_.describe_member(item.peer);
  return text(send ? "send(" : "recv(", name(item.type), " x ",
              item.bytes / element_size(item.type), ", tag ", item.tag, send ? ") to " : ") from ",
              peer, " on ", group_.where());
}

/// Everything under way fails, and the group with it.
void Mailbox::fail_locked(const Error& cause) {
  group_.break_with(cause);
  end_all(std::make_exception_ptr(cause));
  changed_.notify_all();
}

/// Nothing is driven from here on: the memory of what ends here may go away at once.
void Mailbox::end_all(const std::exception_ptr& error) {
  failed_ = true;
  for (Link& link : links_) {
    link.queued.clear();
    link.announced.clear();
    link.leaving.clear();
    link.coming.clear();
  }
  table_->clear();
  for (const auto& item : items_) {
    item->error = error;
    item->done = true;
  }
  items_.clear();
}

/// The owner lets go of a transfer, and with it of the memory.
void Mailbox::give_up(const std::shared_ptr<TransferItem>& item) {
  std::lock_guard lock(mutex_);
  if (item->done) return;
  if (item->begun) {
    fail_locked(Error(Kind::kAborted, describe(*item) + " was given up half way"));
    return;
  }
  if (item->what == TransferItem::What::kSend) {
    std::erase(link_to(item->peer).queued, item);
  } else {
    table_->withdraw(static_cast<const Receiving&>(*item));
  }
  finish(*item);
}

std::function<bool()> Mailbox::drained(const Group& group) {
  struct Unread {
    Member member;
    const PairWords* answers;
    std::uint64_t written;
    std::uint64_t laid;
  };
  std::vector<Unread> all;
  const auto* own = reinterpret_cast<const Outbox*>(group.member(group.rank()).outbox());
  for (int r = 0; r < group.size(); ++r) {
    const PairWords& words = own->pairs[r];
    const std::uint64_t written = words.written.load(std::memory_order_relaxed);
    const std::uint64_t laid = words.laid.load(std::memory_order_relaxed);
    if (written == 0) continue;
    const auto* theirs = reinterpret_cast<const Outbox*>(group.member(r).outbox());
    all.push_back({group.member(r), &theirs->pairs[group.rank()], written, laid});
  }
  return [all, epoch = group.epoch()] {
    return std::all_of(all.begin(), all.end(), [&](const Unread& unread) {
      const State& state = unread.member.slot->state;
      if (unread.member.peer->dead.load() || state.epoch.load(std::memory_order_acquire) != epoch ||
          state.code.load(std::memory_order_acquire) != State::kActive) {
        return true;
      }
      // An outbox that is not open is not to be touched; its owner has read nothing yet.
      return state.outbox.load(std::memory_order_acquire) == epoch &&
             unread.answers->read.load(std::memory_order_acquire) == unread.written &&
             unread.answers->taken.load(std::memory_order_acquire) == unread.laid;
    });
  };
}

}  // namespace fvd::shm
