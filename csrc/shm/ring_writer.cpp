#include <algorithm>
#include <cstring>

#include "comm/error.h"
#include "shm/ring.h"

namespace fvd::shm {
namespace {

// So much is copied before the readers may follow: they find it in the caches, and the wake-up,
// where one is needed, costs little beside it.
constexpr std::uint64_t kPieceBytes = 256 << 10;
// A slot's memory grows in steps of at least this, because each looks at the machine's limits.
constexpr std::uint64_t kLeastReserve = 64 << 10;

/// The parts of a message laid end to end.
class Gather {
 public:
  Gather(std::span<const std::byte> table, std::span<const std::span<const std::byte>> parts)
      : current_(table), rest_(parts) {}

  void copy(std::byte* to, std::uint64_t bytes) {
    while (bytes > 0) {
      while (current_.empty()) {
        current_ = rest_.front();
        rest_ = rest_.subspan(1);
      }
      const auto step = std::min<std::uint64_t>(bytes, current_.size());
      std::memcpy(to, current_.data(), step);
      current_ = current_.subspan(step);
      to += step;
      bytes -= step;
    }
  }

 private:
  std::span<const std::byte> current_;
  std::span<const std::span<const std::byte>> rest_;
};

}  // namespace

RingWriter::RingWriter(std::shared_ptr<RingMemory> memory, std::chrono::microseconds spin)
    : RingEnd(memory, RingWatch::kWriter, memory->control().writer, spin),
      reserved_(layout_.slots) {}

void RingWriter::say(RingHead::Code code, const std::string& reason) noexcept {
  {
    const std::lock_guard lock(saying_);
    RingHead& head = memory_->own_head();
    if (head.code.load(std::memory_order_relaxed) != RingHead::kOpen) return;
    const std::size_t length = std::min(reason.size(), sizeof(head.reason) - 1);
    std::memcpy(head.reason, reason.data(), length);
    head.reason[length] = '\0';
    head.code.store(code, std::memory_order_seq_cst);
  }
  ring_always(memory_->control().readers);
  ring_always(memory_->control().writer);
}

void RingWriter::lost(const std::string& who) {
  say(RingHead::kBroken, who);
  throw Error(Kind::kPeerLost, text(site(), ": ", who,
                                    "\nThe queue is now unusable for all its readers; close it and "
                                    "make a new one."));
}

void RingWriter::begin(bool raw) {
  const RingHead& head = memory_->head();
  FVD_CHECK(head.code.load(std::memory_order_acquire) == RingHead::kOpen, kAborted, site(),
            ": the queue is broken: ", head.reason);
  FVD_CHECK(raw == raw_open_, kInvalidArgument, site(), ": an acquire_write is ",
            raw_open_ ? "still open; leave it first" : "not open");
  if (const auto who = watch_.dead()) lost(*who);
  FVD_CHECK(!all_left(), kPeerLost, site(), ": every reader has closed it; nobody would read this");
}

bool RingWriter::all_left() const {
  for (std::uint64_t r = 0; r < address().readers; ++r) {
    if (memory_->control().reader[r].left.load(std::memory_order_acquire) == 0) return false;
  }
  return true;
}

void RingWriter::publish(std::uint64_t position) {
  memory_->own_head().published.store(position, std::memory_order_seq_cst);
  ring(memory_->control().readers);
}

/// Whether every reader that is still there has taken the message that lay in this slot before.
bool RingWriter::free(std::uint64_t number) {
  if (number < layout_.slots + taken_) return true;
  std::uint64_t least = next_;
  for (std::uint64_t r = 0; r < address().readers; ++r) {
    const RingReaderWords& words = memory_->control().reader[r];
    if (words.left.load(std::memory_order_acquire) != 0) continue;
    const std::uint64_t taken = words.taken.load(std::memory_order_seq_cst);
    FVD_CHECK(taken <= next_, kMismatch, site(), ": reader ", r, " says it has taken ", taken,
              " chunks of ", next_, "; something has written into the queue's memory");
    least = std::min(least, taken);
  }
  taken_ = std::max(taken_, least);
  return number < layout_.slots + taken_;
}

std::string RingWriter::slowest() const {
  std::string words = text("all ", layout_.slots, " chunks are full, waiting for");
  for (std::uint64_t r = 0; r < address().readers; ++r) {
    const RingReaderWords& reader = memory_->control().reader[r];
    const std::uint64_t taken = reader.taken.load();
    if (reader.left.load() != 0 || next_ < layout_.slots + taken) continue;
    words += text("\n  ", watch_.describe(static_cast<int>(r)), ", took ", taken, " of ", next_,
                  " chunks");
  }
  return words;
}

void RingWriter::wait_free(std::uint64_t number, const RingCall& call) {
  wait(call, [&] { return free(number); }, [&] { return slowest(); });
}

/// Makes the first `bytes` of the slot `next_` safe to touch.
void RingWriter::reserve(std::uint64_t bytes) {
  std::uint64_t& reserved = reserved_[next_ % layout_.slots];
  if (bytes <= reserved) return;
  const std::uint64_t wanted =
      std::min(layout_.stride(), std::max({bytes, 2 * reserved, kLeastReserve}));
  const std::uint64_t end = (wanted + kPageBytes - 1) / kPageBytes * kPageBytes;
  try {
    memory_->data_segment().reserve(layout_.slot_offset(next_) + reserved, end - reserved);
  } catch (const Error& error) {
    throw Error(error.kind(), text(site(), ": memory for chunk ", next_ % layout_.slots, " of ",
                                   layout_.slots, ": ", error.what(),
                                   "\nFewer or smaller chunks need less (max_chunks, "
                                   "max_chunk_bytes). The queue is as it was."));
  }
  reserved = end;
}

/// The slot `next_` with `message` as its head, safe to touch for `used` bytes.
RingSlot& RingWriter::prepare(std::uint64_t used, const RingSlot& message) {
  reserve(sizeof(RingSlot) + used);
  RingSlot& slot = memory_->own_slot(next_);
  slot = message;
  slot.number = next_;
  return slot;
}

void RingWriter::write(std::span<const std::span<const std::byte>> parts, const RingCall& call,
                       const std::vector<bool>& marked) {
  const Entry entry(*this, "enqueue");
  begin(false);
  FVD_CHECK(!parts.empty(), kInvalidArgument, site(), ": a message has at least one part");
  table_.clear();
  std::uint64_t bytes = parts.size() * sizeof(std::uint64_t);
  for (const auto& part : parts) {
    const bool mark = !marked.empty() && marked.at(table_.size());
    table_.push_back(part.size() | (mark ? kMarkedPart : 0));
    bytes += part.size();
  }
  Gather source(std::as_bytes(std::span(table_)), parts);
  const std::uint64_t first = next_;
  const RingSlot message{0, first, bytes, static_cast<std::uint32_t>(parts.size()),
                         MessageKind::kParts};
  // Whatever throws does so between two slots. The next message then begins in the next slot, by
  // which a reader knows that this one will not be completed.
  for (std::uint64_t left = bytes; left > 0;) {
    const std::uint64_t used = std::min(left, layout_.slot_bytes);
    wait_free(next_, call);
    std::byte* to = prepare(used, message).data();
    const std::uint64_t begin = next_ * layout_.slot_bytes;
    for (std::uint64_t done = 0; done < used;) {
      const std::uint64_t piece = std::min(used - done, kPieceBytes);
      source.copy(to + done, piece);
      done += piece;
      if (done < used) publish(begin + done);
    }
    ++next_;
    publish(begin + layout_.slot_bytes);
    left -= used;
  }
}

std::span<std::byte> RingWriter::begin_raw(const RingCall& call) {
  const Entry entry(*this, "acquire_write");
  begin(false);
  wait_free(next_, call);
  RingSlot& slot =
      prepare(layout_.slot_bytes, {0, next_, layout_.slot_bytes, 1, MessageKind::kRaw});
  raw_open_ = true;
  return {slot.data(), layout_.slot_bytes};
}

void RingWriter::end_raw(bool publish_it) {
  const Entry entry(*this, "acquire_write");
  FVD_CHECK(raw_open_, kInvalidArgument, site(), ": not open");
  raw_open_ = false;
  if (!publish_it) return;
  begin(false);
  ++next_;
  publish(next_ * layout_.slot_bytes);
}

void RingWriter::wait_until_ready(const RingCall& call) {
  const Entry entry(*this, "wait_until_ready");
  begin(false);
  const auto first_missing = [&] {
    for (std::uint64_t r = 0; r < address().readers; ++r) {
      if (memory_->control().reader[r].start_time.load(std::memory_order_seq_cst) == 0) return r;
    }
    return address().readers;
  };
  wait(
      call, [&] { return first_missing() == address().readers; },
      [&] { return text("reader ", first_missing(), " has not attached"); });
  memory_->own_head().ready.store(1, std::memory_order_seq_cst);
  ring(memory_->control().readers);
}

}  // namespace fvd::shm
