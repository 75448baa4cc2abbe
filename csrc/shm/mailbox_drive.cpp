// How a message gets from its sender to its receiver. All under the mailbox's mutex.
// docs/shared_memory.md names every word with its partner.
#include <new>
#include <utility>

#include "shm/copy.h"
#include "shm/mailbox.h"
#include "shm/match_table.h"
#include "shm/transfer_item.h"

namespace fvd::shm {
namespace {

// A drive ends after that many rounds, so that whoever starts or polls a transfer does not carry
// out the whole of a long one.
constexpr int kRounds = 16;

}  // namespace

template <typename Body>
void Mailbox::guarded(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    fail_locked(error);
  } catch (const std::bad_alloc&) {
    fail_locked(Error(Kind::kSystem, text("fastvideo: messages on ", group_.where(),
                                          ": this process is out of memory")));
  }
}

/// Takes a transfer up. It may be done, or have failed, on return.
void Mailbox::begin(const std::shared_ptr<TransferItem>& item) {
  guarded([&] {
    if (failed_) return;  // its waiter finds out why
    if (item->what == TransferItem::What::kRecv) {
      begin_receive(std::static_pointer_cast<Receiving>(item));
    } else {
      link_to(item->peer).queued.push_back(std::static_pointer_cast<Sending>(item));
    }
  });
  drive_locked();
}

void Mailbox::begin_receive(const std::shared_ptr<Receiving>& receiving) {
  const auto message = table_->take_message(receiving->peer, receiving->tag);
  if (!message) {
    table_->post(receiving);
    return;
  }
  check_fits(*receiving, message->source, message->bytes, message->type);
  receiving->peer = message->source;
  if (message->payload == nullptr) {
    want(receiving, message->number);
    return;
  }
  copy_range(receiving->data, 0, message->payload.get(), message->bytes);
  matched(*receiving);
}

/// Moves what can be moved, for a while. True if anything was: there may be more.
bool Mailbox::drive_locked() {
  bool moved = false;
  guarded([&] {
    bool again = true;
    for (int round = 0; again && !failed_ && round < kRounds; ++round) {
      again = false;
      for (Link& link : links_) again = (link.peer != group_.rank() && drive(link)) || again;
      moved = moved || again;
    }
  });
  // Of several waiting threads one may have finished the transfer of another that sleeps.
  if (std::exchange(finished_, false) && drivers_ > 0) ring(group_.own_bells().transfer);
  return moved;
}

bool Mailbox::drive(Link& link) {
  bool moved = read_records(link);
  moved = write_records(link) || moved;
  moved = fill_lane(link) || moved;
  moved = empty_lane(link) || moved;
  if (moved) ring(group_.member(link.peer).bells->transfer);
  return moved;
}

Link& Mailbox::link_to(int rank) { return links_[static_cast<std::size_t>(rank)]; }

PairWords& Mailbox::own_pair(const Link& link) {
  return own_->pairs[static_cast<std::size_t>(link.peer)];
}

const Outbox& Mailbox::outbox_of(const Link& link) const {
  return *reinterpret_cast<const Outbox*>(group_.member(link.peer).outbox());
}

/// Looks at a word the other rank keeps about this one, which may have grown up to `most`. True if
/// it has.
bool Mailbox::refresh(const Link& link, std::uint64_t& known, Word word, std::uint64_t most) const {
  // Before Group::open_outbox the memory is not reserved, and even reading it would take pages that
  // nobody has accounted for.
  const auto& open = group_.member(link.peer).slot->state.outbox;
  if (open.load(std::memory_order_seq_cst) != group_.epoch()) return false;
  const std::uint64_t value =
      (outbox_of(link).pairs[group_.rank()].*word).load(std::memory_order_seq_cst);
  // Once more: the slot may have become another group's in between.
  if (value == known || open.load(std::memory_order_seq_cst) != group_.epoch()) return false;
  if (value < known || value > most) {
    throw_damaged(
        link, text("a word went from ", known, " to ", value, ", at most ", most, " is possible"));
  }
  known = value;
  return true;
}

/// After bytes were copied out of the other rank's outbox, before anybody relies on them: another
/// group may have taken the slot of a rank that gave up. Pairs with the store in take_slot.
void Mailbox::check_still_open(const Link& link) const {
  FVD_CHECK(
      group_.member(link.peer).slot->state.outbox.load(std::memory_order_seq_cst) == group_.epoch(),
      kPeerLost, "fastvideo: messages on ", group_.where(), ": ", group_.describe_member(link.peer),
      " gave the group up while a message of it was read.\nGroup is now unusable; "
      "destroy_process_group() and init again.");
}

void Mailbox::throw_damaged(const Link& link, const std::string& what) const {
  throw Error(Kind::kSystem,
              text("fastvideo: messages from ", group_.describe_member(link.peer), " on ",
                   group_.where(), ": its shared memory is damaged: ", what,
                   ".\nGroup is now unusable; destroy_process_group() and init again."));
}

void Mailbox::finish(TransferItem& item) {
  item.done = true;
  finished_ = true;
  items_.erase(item.place);
}

}  // namespace fvd::shm
