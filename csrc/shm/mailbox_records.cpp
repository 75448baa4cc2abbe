// What goes through the rings: messages, announcements, and who wants what. Under the mailbox's
// mutex.
#include <algorithm>
#include <cstring>
#include <utility>

#include "shm/mail_ring.h"
#include "shm/mailbox.h"
#include "shm/match_table.h"
#include "shm/transfer_item.h"

namespace fvd::shm {

bool Mailbox::read_records(Link& link) {
  const auto ring = ring_towards(outbox_of(link), group_.rank(), group_.size());
  // Pairs with the store in write_record, which publishes the records.
  if (!refresh(link, link.written_there, &PairWords::written, link.read + ring.bytes)) return false;
  const std::size_t longest = Outbox::whole_bytes(static_cast<std::size_t>(group_.size()));
  while (link.read != link.written_there) {
    MessageRecord record;  // a copy: what is checked is what is used
    std::memcpy(&record, ring.at(link.read), sizeof(record));
    check_still_open(link);
    const bool whole = record.kind == MessageRecord::kWhole;
    const std::uint64_t payload = whole ? std::min<std::uint64_t>(record.bytes, longest + 1) : 0;
    if (payload > longest || record_bytes(payload) > link.written_there - link.read) {
      throw_damaged(link, "a record does not fit the ring");
    }
    if (whole || record.kind == MessageRecord::kAnnounced) {
      receive_record(link, record);
    } else {
      send_wanted(link, record);
    }
    link.read += record_bytes(payload);
  }
  // Pairs with the look in write_record: the room may be used again.
  own_pair(link).read.store(link.read, std::memory_order_seq_cst);
  return true;
}

/// The receiver has a receive for an announced message.
void Mailbox::send_wanted(Link& link, const MessageRecord& record) {
  const auto sending = link.announced.find(record.number);
  if (record.kind != MessageRecord::kWanted || sending == link.announced.end()) {
    throw_damaged(link, "a record asks for what was not sent");
  }
  link.leaving.push_back(std::move(sending->second));
  link.announced.erase(sending);
}

/// A message, or the announcement of one, at `link.read`.
void Mailbox::receive_record(Link& link, const MessageRecord& record) {
  const bool whole = record.kind == MessageRecord::kWhole;
  const auto type = static_cast<DataType>(record.type & 0xff);
  const auto ring = ring_towards(outbox_of(link), group_.rank(), group_.size());
  const std::uint64_t payload = link.read + sizeof(record);
  if (const auto receiving = table_->take_receive(link.peer, record.tag)) {
    check_fits(*receiving, link.peer, record.bytes, type);
    receiving->peer = link.peer;
    if (whole) {
      ring.read(payload, receiving->data, 0, record.bytes);
      check_still_open(link);
      matched(*receiving);
    } else {
      want(receiving, record.number);
    }
    return;
  }
  Arrived message{link.peer, record.tag, record.number, record.bytes, type, nullptr, 0};
  if (whole) {
    message.payload = std::make_unique_for_overwrite<std::byte[]>(record.bytes);
    ring.read(payload, contiguous_block(message.payload.get(), record.bytes), 0, record.bytes);
    check_still_open(link);
  }
  table_->keep(std::move(message));
}

/// A receive has got a whole message. Its sender may have one more unmatched.
void Mailbox::matched(Receiving& receiving) {
  Link& from = link_to(receiving.peer);
  from.matched += record_bytes(receiving.bytes);
  // Pairs with the look in write_front; orders nothing.
  own_pair(from).matched.store(from.matched, std::memory_order_seq_cst);
  finish(receiving);
}

/// A receive has found an announced message: asks for its bytes.
void Mailbox::want(const std::shared_ptr<Receiving>& receiving, std::uint64_t number) {
  Link& from = link_to(receiving->peer);
  receiving->begun = true;
  from.coming.push_back(receiving);
  from.wanted.push_back(number);
}

void Mailbox::check_fits(const Receiving& receiving, int source, std::uint64_t bytes,
                         DataType type) const {
  FVD_CHECK(
      bytes == receiving.bytes && type == receiving.type, kMismatch,
      "fastvideo: ", describe(receiving), ": expected ", receiving.bytes, " bytes of ",
      name(receiving.type), ", but ", group_.describe_member(source), " sent ", bytes, " bytes of ",
      name(type),
      ". The output was not touched.\nGroup is now unusable; destroy_process_group() and init "
      "again.");
}

bool Mailbox::write_records(Link& link) {
  bool moved = false;
  while (!link.wanted.empty()) {
    MessageRecord record{};
    record.kind = MessageRecord::kWanted;
    record.number = link.wanted.front();
    if (!write_record(link, record, nullptr)) return moved;
    link.wanted.pop_front();
    moved = true;
  }
  while (!link.queued.empty() && write_front(link)) moved = true;
  return moved;
}

/// Writes the oldest send that is not in the ring yet, whole if it is short and few are unmatched.
bool Mailbox::write_front(Link& link) {
  const auto sending = link.queued.front();
  const auto ranks = static_cast<std::size_t>(group_.size());
  const std::uint64_t room = record_bytes(sending->bytes);
  const auto unmatched_fit = [&] {
    return link.whole - link.matched_there + room <= Outbox::ring_bytes(ranks);
  };
  bool whole = sending->bytes <= Outbox::whole_bytes(ranks);
  if (whole && !unmatched_fit()) {
    refresh(link, link.matched_there, &PairWords::matched, link.whole);
    whole = unmatched_fit();
  }
  MessageRecord record{};
  record.kind = whole ? MessageRecord::kWhole : MessageRecord::kAnnounced;
  record.tag = sending->tag;
  record.number = link.next_number;
  record.bytes = sending->bytes;
  record.type = static_cast<std::uint64_t>(sending->type);
  if (!write_record(link, record, whole ? sending.get() : nullptr)) return false;
  link.queued.pop_front();
  if (whole) {  // the caller's memory is free, whenever the receiver comes
    link.whole += room;
    finish(*sending);
  } else {
    sending->begun = true;
    link.announced.emplace(link.next_number++, sending);
  }
  return true;
}

/// False if the ring is full: its reader has to come first.
bool Mailbox::write_record(Link& link, const MessageRecord& record, const Sending* whole) {
  const auto ring = ring_towards(*own_, link.peer, group_.size());
  const std::uint64_t room = record_bytes(whole != nullptr ? whole->bytes : 0);
  if (link.written - link.read_there + room > ring.bytes) {
    refresh(link, link.read_there, &PairWords::read, link.written);
    if (link.written - link.read_there + room > ring.bytes) return false;
  }
  if (!link.ring_reserved) {
    group_.reserve_outbox(ring.data, ring.bytes);
    link.ring_reserved = true;
  }
  std::memcpy(ring.at(link.written), &record, sizeof(record));
  if (whole != nullptr) {
    ring.write(link.written + sizeof(record), whole->data, 0, whole->bytes);
  }
  link.written += room;
  own_pair(link).written.store(link.written, std::memory_order_seq_cst);
  return true;
}

}  // namespace fvd::shm
