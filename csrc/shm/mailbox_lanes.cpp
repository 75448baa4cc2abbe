// How the bytes of announced messages pass through the lanes. Under the mailbox's mutex.
#include <algorithm>

#include "shm/mail_ring.h"
#include "shm/mailbox.h"
#include "shm/transfer_item.h"

namespace fvd::shm {
namespace {

/// Bytes of the next part of a message in its lane.
std::size_t next_part(const TransferItem& item, int ranks) {
  return std::min<std::uint64_t>(Outbox::part_bytes(static_cast<std::size_t>(ranks)),
                                 item.bytes - item.moved);
}

/// What a part takes of the lane. Never nothing, so that an empty message has a part as well.
std::uint64_t lane_room(std::size_t part) {
  return (std::max<std::size_t>(part, 1) + kRecordAlign - 1) / kRecordAlign * kRecordAlign;
}

}  // namespace

/// Lays one part of the message the receiver asked for first.
bool Mailbox::fill_lane(Link& link) {
  if (link.leaving.empty()) return false;
  const auto sending = link.leaving.front();
  const auto lane = lane_towards(*own_, link.peer, group_.size());
  const std::size_t part = next_part(*sending, group_.size());
  const std::uint64_t room = lane_room(part);
  if (link.laid - link.taken_there + room > lane.bytes) {
    // Pairs with the store in empty_lane.
    refresh(link, link.taken_there, &PairWords::taken, link.laid);
    if (link.laid - link.taken_there + room > lane.bytes) return false;
  }
  if (!link.lane_reserved) {
    group_.reserve_outbox(lane.data, lane.bytes);
    link.lane_reserved = true;
  }
  lane.write(link.laid, sending->data, sending->moved, part);
  sending->moved += part;
  link.laid += room;
  own_pair(link).laid.store(link.laid, std::memory_order_seq_cst);
  if (sending->moved == sending->bytes) {
    link.leaving.pop_front();
    finish(*sending);
  }
  return true;
}

/// Takes one part of the message this rank asked for first. Both sides divide it alike.
bool Mailbox::empty_lane(Link& link) {
  if (link.coming.empty()) return false;
  const auto receiving = link.coming.front();
  const auto lane = lane_towards(outbox_of(link), group_.rank(), group_.size());
  const std::size_t part = next_part(*receiving, group_.size());
  const std::uint64_t room = lane_room(part);
  if (link.laid_there - link.taken < room) {
    // Pairs with the store in fill_lane, which publishes the bytes.
    refresh(link, link.laid_there, &PairWords::laid, link.taken + lane.bytes);
    if (link.laid_there - link.taken < room) return false;
  }
  lane.read(link.taken, receiving->data, receiving->moved, part, hint_for(receiving->bytes));
  check_still_open(link);
  receiving->moved += part;
  link.taken += room;
  own_pair(link).taken.store(link.taken, std::memory_order_seq_cst);
  if (receiving->moved == receiving->bytes) {
    link.coming.pop_front();
    finish(*receiving);
  }
  return true;
}

}  // namespace fvd::shm
