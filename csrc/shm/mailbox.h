// Sends and receives of one group, beside its collectives.
//
// A message lies in an envelope of the sender's outbox: two halves of 32 KiB that sender and
// receiver fill and empty in turn. The receiver looks through the outboxes for the oldest message
// of its (source, tag). Nothing is ordered but messages of one pair and tag, so two ranks that both
// send first do not wait for each other as long as somebody drives them: whoever waits for a
// transfer drives all transfers of the group, and while nobody waits a thread of the mailbox does.
#pragma once

#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "shm/group.h"

namespace fvd::shm {

/// From any thread. `group` outlives it.
class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  explicit Mailbox(Group& group);
  ~Mailbox();

  std::unique_ptr<Transfer> send(ConstBlock data, DataType type, int destination, int tag);
  std::unique_ptr<Transfer> recv(Block data, DataType type, int source, int tag);

  /// True once no receiver needs this rank's outbox any more. For Group::also_drain: does not touch
  /// the mailbox itself, which may be gone by then.
  static std::function<bool()> drained(const Group& group);

  /// For a forked child, which has neither the mailbox's thread nor its memory: never destroyed
  /// there, because a condition variable that had waiters at the fork cannot be.
  static void forget(std::shared_ptr<Mailbox> mailbox) noexcept {
    static_cast<void>(new std::shared_ptr<Mailbox>(std::move(mailbox)));
  }

  /// Fails what is under way and joins the thread.
  void close() noexcept;

 private:
  struct Sending;
  struct Receiving;
  struct Item;
  class Handle;

  void start(const std::shared_ptr<Item>& item);
  void wait(const std::shared_ptr<Item>& item, const Call& call);
  bool drive_locked();
  bool drive(Item& item);
  bool drive(Sending& sending);
  bool drive(Receiving& receiving);
  bool overtakes(const Item& item) const;
  bool open_envelope(Sending& sending);
  bool match(Receiving& receiving);
  void take_header(Receiving& receiving);
  void check(Item& item);
  void fail_locked(const Error& cause);
  void run();
  std::string describe(const Item& item) const;
  Outbox& own() { return *own_; }
  const Outbox& of(int rank) const {
    return *reinterpret_cast<const Outbox*>(group_.member(rank).outbox());
  }

  Group& group_;                    // gone once closed_
  std::shared_ptr<Domain> domain_;  // outlives the group for transfers that do
  Outbox* own_ = nullptr;
  bool closed_ = false;  // touched by the owner alone

  std::mutex mutex_;  // guards all below, and the outbox's words of this rank
  std::condition_variable changed_;
  std::list<std::shared_ptr<Item>> items_;  // in the order they were started
  std::uint64_t next_order_ = 1;
  std::uint32_t generations_[Outbox::kEnvelopes] = {};
  std::shared_ptr<Sending> senders_[Outbox::kEnvelopes];  // who fills the envelope; null: free
  int drivers_ = 0;                                       // threads in wait()
  bool stop_ = false;
  std::unique_ptr<std::thread> thread_;
};

}  // namespace fvd::shm
