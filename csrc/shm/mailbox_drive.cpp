// How a message gets from an outbox to its receiver: envelopes, chunks, receipts. All under the
// mailbox's mutex.
#include <algorithm>

#include "shm/copy.h"
#include "shm/mailbox.h"
#include "shm/transfer_item.h"

namespace fvd::shm {

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

/// Whether an older transfer that could have the same message, or place in line, still waits for
/// its own: what comes free between the two looks of one pass is the older one's.
bool Mailbox::overtakes(const Item& item) const {
  for (const auto& older : items_) {
    if (older.get() == &item) return false;
    if (older->settled || older->envelope != -1 || older->what != item.what) continue;
    if (item.what == Item::What::kSend) return true;
    const bool same_source = older->peer == item.peer || older->peer < 0 || item.peer < 0;
    if (same_source && older->tag == item.tag) return true;
  }
  return false;
}

bool Mailbox::drive(Item& item) {
  try {
    return item.what == Item::What::kSend ? drive(static_cast<Sending&>(item))
                                          : drive(static_cast<Receiving&>(item));
  } catch (const Error& error) {
    fail_locked(error);
    return true;
  }
}

bool Mailbox::drive(Sending& sending) {
  if (sending.envelope == -1 && (overtakes(sending) || !open_envelope(sending))) return false;
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
  const auto wanted =
      static_cast<std::uint64_t>(group_.rank()) << 32 | static_cast<std::uint32_t>(receiving.tag);
  // Twice: a message that became visible during the first look may be younger than one posted just
  // before it.
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
        // Looked at again: the words belong together only if the envelope was not used anew
        // meanwhile.
        if (seen >> 32 == generation || envelope.posted.load(std::memory_order_acquire) != posted)
          continue;
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
  FVD_CHECK(
      bytes == receiving.bytes && type == receiving.type, kMismatch,
      "fastvideo: ", describe(receiving), ": expected ", receiving.bytes, " bytes of ",
      name(receiving.type), ", but ", group_.describe_member(receiving.peer), " sent ", bytes,
      " bytes of ", name(type),
      ". The output was not touched.\nGroup is now unusable; destroy_process_group() and init "
      "again.");
}

bool Mailbox::drive(Receiving& receiving) {
  bool moved = false;
  if (receiving.envelope == -1) {
    if (overtakes(receiving) || !match(receiving)) {
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
  const std::uint64_t word =
      theirs.envelopes[receiving.envelope].written.load(std::memory_order_seq_cst);
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

}  // namespace fvd::shm
