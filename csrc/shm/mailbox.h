// Sends and receives of one group, beside its collectives.
//
// Between each two ranks there is a ring of records each way, and a lane. A short message goes into
// the ring as a whole; of a long one, and of all that follow while too many lie unmatched, the ring
// gets an announcement. The receiver empties the ring whenever it drives and keeps what nobody has
// asked for yet in its own memory, so a message never waits behind another one of a different tag
// or receiver. Once an announced message has its receive, the receiver says so through its own ring
// and the bytes pass through the lane. Any number of messages may be unmatched: they cost the
// receiver some hundred bytes each, and the first of a pair, up to a ring full, their length.
//
// Nothing is ordered but messages of one pair and tag, so ranks that all send first do not wait for
// each other as long as somebody drives them: whoever waits for a transfer drives all transfers of
// the group, and while nobody waits a thread of the mailbox does. A rank without a transfer under
// way owes nobody anything.
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

class MatchTable;
struct Link;
struct Receiving;
struct Sending;
struct TransferItem;

/// From any thread. `group` outlives it.
class Mailbox : public std::enable_shared_from_this<Mailbox> {
 public:
  /// Opens this rank's outbox. @throws Error(kSystem) if there is no memory for it.
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
  class Handle;

  // mailbox.cpp
  void start(const std::shared_ptr<TransferItem>& item);
  void give_up(const std::shared_ptr<TransferItem>& item);
  void fail_locked(const Error& cause);
  void end_all(const std::exception_ptr& error);
  std::string describe(const TransferItem& item) const;

  // mailbox_wait.cpp
  void wait(const std::shared_ptr<TransferItem>& item, const Call& call);
  void expire(TransferItem& item, std::chrono::milliseconds waited);
  [[noreturn]] void throw_timeout(const TransferItem& item, std::chrono::milliseconds waited) const;
  bool poll_locked(TransferItem& item);
  void check(TransferItem& item);
  void check_everybody();
  enum class Driven { kEnough, kIdle, kBusy };
  template <typename Enough>
  Driven drive_until(Enough&& enough);
  void start_thread();
  void run();

  // mailbox_drive.cpp; all under the mutex
  using Word = std::atomic<std::uint64_t> PairWords::*;
  template <typename Body>
  void guarded(Body&& body);
  void begin(const std::shared_ptr<TransferItem>& item);
  void begin_receive(const std::shared_ptr<Receiving>& receiving);
  bool drive_locked();
  bool drive(Link& link);
  void finish(TransferItem& item);
  bool refresh(const Link& link, std::uint64_t& known, Word word, std::uint64_t most) const;
  void check_still_open(const Link& link) const;
  [[noreturn]] void throw_damaged(const Link& link, const std::string& what) const;
  Link& link_to(int rank);
  PairWords& own_pair(const Link& link);
  const Outbox& outbox_of(const Link& link) const;

  // mailbox_records.cpp; so is this
  bool read_records(Link& link);
  void send_wanted(Link& link, const MessageRecord& record);
  void receive_record(Link& link, const MessageRecord& record);
  void matched(Receiving& receiving);
  void want(const std::shared_ptr<Receiving>& receiving, std::uint64_t number);
  void check_fits(const Receiving& receiving, int source, std::uint64_t bytes, DataType type) const;
  bool write_records(Link& link);
  bool write_front(Link& link);
  bool write_record(Link& link, const MessageRecord& record, const Sending* whole);

  // mailbox_lanes.cpp; so is this
  bool fill_lane(Link& link);
  bool empty_lane(Link& link);

  Group& group_;                    // gone once closed_
  std::shared_ptr<Domain> domain_;  // outlives the group for transfers that do
  Outbox* own_ = nullptr;
  bool closed_ = false;  // touched by the owner alone

  std::mutex mutex_;  // guards all below, and the words of this rank's outbox
  std::condition_variable changed_;
  std::list<std::shared_ptr<TransferItem>> items_;  // not done; in the order of their start
  std::vector<Link> links_;                         // one per rank
  std::unique_ptr<MatchTable> table_;
  int drivers_ = 0;        // threads in wait()
  bool finished_ = false;  // an item was finished; its waiter may have to be woken
  bool failed_ = false;    // nothing is driven any more
  bool stop_ = false;
  std::unique_ptr<std::thread> thread_;  // a forked child lets go of it
};

}  // namespace fvd::shm
