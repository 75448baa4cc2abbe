#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "comm/error.h"
#include "shm/copy.h"
#include "shm/process.h"
#include "shm/ring.h"

namespace fvd::shm {
namespace {

/// Of two positions in the stream, which are never further apart than the ring is long: positions
/// of large chunks wrap around in a process's life.
bool is_after(std::uint64_t a, std::uint64_t b) { return static_cast<std::int64_t>(a - b) > 0; }

}  // namespace

RingReader::RingReader(std::shared_ptr<RingMemory> memory, int self, std::chrono::microseconds spin)
    : RingEnd(memory, self, memory->control().readers, spin) {
  FVD_CHECK(self >= 0 && static_cast<std::uint64_t>(self) < address().readers, kInvalidArgument,
            "queue \"", address().name, "\" has the readers 0 to ", address().readers - 1, ", not ",
            self);
  RingReaderWords& words = memory_->control().reader[self];
  const std::uint64_t started = start_time(getpid());
  std::uint64_t nobody = 0;
  FVD_CHECK(words.pid.compare_exchange_strong(nobody, static_cast<std::uint64_t>(getpid())),
            kInvalidArgument, "queue \"", address().name, "\": reader ", self, " is process ",
            nobody, " (", describe_state(static_cast<pid_t>(nobody), words.start_time.load()),
            ") already; each reader attaches once");
  words.start_time.store(started, std::memory_order_seq_cst);
  ring(memory_->control().writer);
}

RingReader::~RingReader() {
  close();
  raw_open_ = false;  // its memory goes now
  settle();
}

void RingReader::say_closed() noexcept {
  memory_->control().reader[self_].left.store(1, std::memory_order_seq_cst);
  ring(memory_->control().writer);
  ring_always(memory_->control().readers);
}

void RingReader::lost(const std::string& who) {
  throw Error(Kind::kPeerLost, text(site(), ": ", who, "\nThe queue is unusable; close it."));
}

std::string RingReader::writers_state() const {
  return text("nothing came from the ", watch_.describe(RingWatch::kWriter));
}

void RingReader::begin(bool raw) {
  FVD_CHECK(raw == raw_open_, kInvalidArgument, site(), ": an acquire_read is ",
            raw_open_ ? "still open; leave it first" : "not open");
}

/// What is published, once that is more than `position`. Both count bytes modulo 2^64.
std::uint64_t RingReader::wait_published(std::uint64_t position, const RingCall& call) {
  const RingHead& head = memory_->head();
  wait(
      call,
      [&] {
        return is_after(head.published.load(std::memory_order_seq_cst), position) ||
               head.code.load(std::memory_order_seq_cst) != RingHead::kOpen;
      },
      [&] { return writers_state(); });
  const std::uint32_t code = head.code.load(std::memory_order_seq_cst);
  // After `code`: what was published before the end is still read.
  const std::uint64_t published = head.published.load(std::memory_order_seq_cst);
  FVD_CHECK(is_after(published, position), kPeerLost, site(), ": ",
            code == RingHead::kBroken ? "the writer gave up: " : "", head.reason,
            "\nNothing more will come; close the queue.");
  return published;
}

const RingSlot& RingReader::wait_message(const RingCall& call) {
  wait_published(next_ * layout_.slot_bytes, call);
  const RingSlot& slot = memory_->slot(next_);
  FVD_CHECK(slot.number == next_ && slot.first == next_, kMismatch, site(), ": chunk ", next_,
            " holds chunk ", slot.number, " of the message that begins in ", slot.first,
            "; something has written into the queue's memory");
  return slot;
}

std::vector<RingPart> RingReader::read(const RingCall& call, const RingAllocate& for_marked) {
  const Entry entry(*this, "dequeue");
  begin(false);
  while (true) {
    if (incoming_ == nullptr) {
      const RingSlot& slot = wait_message(call);
      FVD_CHECK(slot.kind == MessageKind::kParts, kInvalidArgument, site(),
                ": the next message was written by acquire_write; take it by acquire_read");
      FVD_CHECK(slot.parts > 0 && slot.parts <= slot.bytes / sizeof(std::uint64_t), kMismatch,
                site(), ": a message of ", slot.bytes, " bytes cannot have ", slot.parts, " parts");
      incoming_ = std::make_unique<Incoming>();
      incoming_->first = next_;
      incoming_->bytes = slot.bytes;
      incoming_->table.resize(slot.parts);
    }
    const bool complete = receive(call, for_marked);
    check_open();
    const auto message = std::move(incoming_);
    if (complete) return std::move(message->parts);
  }
}

/// False if the writer has given the message up; `next_` is the message after it then.
bool RingReader::receive(const RingCall& call, const RingAllocate& for_marked) {
  Incoming& in = *incoming_;
  while (in.done < in.bytes) {
    if (in.parts.empty() && in.done == std::as_bytes(std::span(in.table)).size()) {
      allocate(for_marked);
    }
    const std::span<const std::byte> source = available(call);
    if (source.empty()) return false;
    const std::span<std::byte> to = target();
    const std::size_t bytes = std::min(source.size(), to.size());
    copy_range(to.data(), contiguous_block(source.data(), bytes), 0, bytes, hint_for(in.bytes));
    advance(bytes);
  }
  if (in.parts.empty()) allocate(for_marked);  // all parts are empty
  return true;
}

/// The bytes that come next and are there; none if the message was given up.
std::span<const std::byte> RingReader::available(const RingCall& call) {
  const Incoming& in = *incoming_;
  const std::uint64_t number = in.first + in.done / layout_.slot_bytes;
  const std::uint64_t offset = in.done % layout_.slot_bytes;
  const std::uint64_t begin = number * layout_.slot_bytes;
  const std::uint64_t published = wait_published(begin + offset, call);
  const RingSlot& slot = memory_->slot(number);
  if (slot.number == number && slot.first == number && number != in.first) {
    next_ = number;
    return {};
  }
  FVD_CHECK(slot.number == number && slot.first == in.first, kMismatch, site(), ": chunk ", number,
            " holds chunk ", slot.number, "; something has written into the queue's memory");
  const std::uint64_t used = std::min(layout_.slot_bytes, in.bytes - (in.done - offset));
  const std::uint64_t filled = std::min(used, published - begin);
  return {slot.data() + offset, filled - offset};
}

void RingReader::allocate(const RingAllocate& for_marked) {
  Incoming& in = *incoming_;
  std::uint64_t bytes = in.bytes - in.table.size() * sizeof(std::uint64_t);
  for (const std::uint64_t entry : in.table) {
    const std::uint64_t length = entry & ~kMarkedPart;
    FVD_CHECK(length <= bytes, kMismatch, site(), ": the parts are longer than their message");
    bytes -= length;
  }
  FVD_CHECK(bytes == 0, kMismatch, site(), ": the parts are shorter than their message");
  std::vector<RingPart> parts;
  for (const std::uint64_t entry : in.table) {
    const std::uint64_t length = entry & ~kMarkedPart;
    const bool own = length == 0 || entry == length || for_marked == nullptr;
    parts.push_back({own ? blocks_->take(length) : for_marked(length), length});
  }
  in.parts = std::move(parts);
}

/// Where the next bytes go.
std::span<std::byte> RingReader::target() {
  Incoming& in = *incoming_;
  if (in.parts.empty()) {
    return std::as_writable_bytes(std::span(in.table)).subspan(in.done);
  }
  while (in.part_done == in.parts[in.part].bytes) {
    ++in.part;
    in.part_done = 0;
  }
  RingPart& part = in.parts[in.part];
  return {part.data.get() + in.part_done, part.bytes - in.part_done};
}

void RingReader::advance(std::uint64_t bytes) {
  Incoming& in = *incoming_;
  if (!in.parts.empty()) in.part_done += bytes;
  const std::uint64_t number = in.first + in.done / layout_.slot_bytes;
  in.done += bytes;
  if (in.done == in.bytes || in.done % layout_.slot_bytes == 0) take(number);
}

void RingReader::take(std::uint64_t number) {
  next_ = number + 1;
  memory_->control().reader[self_].taken.store(next_, std::memory_order_seq_cst);
  ring(memory_->control().writer);
}

std::span<const std::byte> RingReader::begin_raw(const RingCall& call) {
  const Entry entry(*this, "acquire_read");
  begin(false);
  FVD_CHECK(incoming_ == nullptr, kInvalidArgument, site(),
            ": a dequeue timed out in the middle of a message; repeat it first");
  const RingSlot& slot = wait_message(call);
  FVD_CHECK(slot.kind == MessageKind::kRaw && slot.bytes == layout_.slot_bytes, kInvalidArgument,
            site(), ": the next message was written by enqueue; take it by dequeue");
  raw_open_ = true;
  return {slot.data(), layout_.slot_bytes};
}

void RingReader::end_raw() {
  const Entry entry(*this, "acquire_read", Entry::kEndOfCall);
  begin(true);
  raw_open_ = false;
  take(next_);
}

void RingReader::wait_until_ready(const RingCall& call) {
  const Entry entry(*this, "wait_until_ready");
  const RingHead& head = memory_->head();
  wait(
      call,
      [&] {
        return head.ready.load(std::memory_order_seq_cst) != 0 ||
               head.code.load(std::memory_order_seq_cst) != RingHead::kOpen;
      },
      [&] {
        return text("not every reader has attached, or the ", watch_.describe(RingWatch::kWriter),
                    " does not wait for them");
      });
  FVD_CHECK(head.ready.load() != 0, kPeerLost, site(), ": ", head.reason);
}

}  // namespace fvd::shm
