// What lies where in a process's two segments. docs/shared_memory.md draws it and names every
// atomic with its partner; the two are to be changed together.
//
// Every word has one writer, the owner of the segment, except the bells: they lie in the control
// segment, which peers may write, and hold nothing anybody relies on but being woken.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "comm/types.h"

namespace fvd::shm {

// Two cache lines, because the hardware fetches them in pairs.
inline constexpr std::size_t kLineBytes = 128;
inline constexpr std::size_t kPageBytes = 4096;
inline constexpr std::size_t kInlineBytes = 48;
inline constexpr std::size_t kMaxRanks = 256;  // of one group on one host

static_assert(std::atomic<std::int64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);

/// What a rank says it is calling, for the message of a mismatch. Equality is decided by the
/// fingerprint over it.
struct Record {
  Op op = Op::kNone;
  DataType type = DataType::kUInt8;
  ReduceKind reduce = ReduceKind::kSum;
  bool has_type = false;
  bool has_reduce = false;
  bool even = true;
  std::int32_t root = -1;
  std::uint64_t count = 0;   // elements
  double factor = 1.0;       // PREMUL_SUM
  std::uint64_t layout = 0;  // Call::layout
};
static_assert(sizeof(Record) <= 64);

/// One rank's announcement of one collective. Announcement k goes to lines[k % 2]: whoever has
/// announced k + 1 has read everybody's k, so k + 2 may overwrite it.
struct alignas(kLineBytes) Line {
  std::atomic<std::int64_t>
      sequence;  // k; released last, acquired first; negative: the rank gave up
  std::uint64_t fingerprint;
  std::byte payload[kInlineBytes];
  Record record;
};
static_assert(sizeof(Line) == kLineBytes);
static_assert(offsetof(Line, record) == 64, "sequence, fingerprint and payload share a cache line");

/// How far a rank has come in the rounds of a pipelined collective: (sequence << 28) + rounds done,
/// so that it only grows. Negative: the rank gave up.
struct alignas(kLineBytes) Progress {
  std::atomic<std::int64_t> staged;     // its part of round r lies in its staging area
  std::atomic<std::int64_t> reduced;    // its slice of round r is reduced
  std::atomic<std::int64_t> consumed;   // it has read all it needs of round r from the others
  std::atomic<std::int64_t> completed;  // last sequence it has finished reading for
};
inline constexpr int kRoundBits = 28;
inline constexpr std::int64_t kGaveUp = std::int64_t{-1};

/// Whether the rank is still there, and why not.
struct alignas(kLineBytes) State {
  enum Code : std::uint32_t { kFree, kJoining, kActive, kBroken, kLeft };
  std::atomic<std::uint64_t> epoch;  // of the group that uses the slot; 0 until it is known
  std::atomic<std::uint32_t> code;   // released after the fields below
  std::uint32_t kind;                // fvd::Kind of the error
  std::int64_t broken_at;            // the first collective this rank will not complete
  std::atomic<std::uint64_t>
      outbox;        // epoch of the group for which the outbox is open; 0: it is not
  char reason[608];  // zero-terminated
};

/// A rank's words about its messages to and from one other rank. They count bytes since the group
/// began and only grow. Those for rank r lie in Outbox::pairs[r]; r answers in its own outbox, in
/// the words for this rank.
struct alignas(kLineBytes) PairWords {
  std::atomic<std::uint64_t> written;  // records laid into the ring towards that rank
  std::atomic<std::uint64_t> read;     // records read out of that rank's ring towards this one
  std::atomic<std::uint64_t> matched;  // of these, records of whole messages with their receive
  std::atomic<std::uint64_t> laid;     // bytes laid into the lane towards that rank
  std::atomic<std::uint64_t> taken;    // bytes taken out of that rank's lane towards this one
};
static_assert(sizeof(PairWords) == kLineBytes);

/// What a ring holds, each at a multiple of kRecordAlign.
struct MessageRecord {
  enum Kind : std::uint32_t {
    kWhole = 1,  // a message; its bytes follow
    kAnnounced,  // a message whose bytes come through the lane once they are wanted
    kWanted,     // from the receiver: the message `number` has its receive
  };
  std::uint32_t kind;
  std::int32_t tag;
  std::uint64_t number;  // of the sender's announced messages to that rank
  std::uint64_t bytes;
  std::uint64_t type;  // DataType
};
inline constexpr std::size_t kRecordAlign = 64;
static_assert(sizeof(MessageRecord) == 32, "a record and a small message share a line");

/// What goes between two ranks beside the collectives; in the staging memory of each. See
/// mailbox.h. Each other rank has an equal share of the rings and lanes, whose size follows from
/// the size of the group; a share is memory once something is sent to that rank.
struct Outbox {
  static constexpr std::size_t kRingsBytes = 1 << 20;
  static constexpr std::size_t kLanesBytes = 4 << 20;

  PairWords pairs[kMaxRanks];
  alignas(kPageBytes) std::byte rings[kRingsBytes];
  alignas(kPageBytes) std::byte lanes[kLanesBytes];

  static constexpr std::size_t ring_bytes(std::size_t ranks) {
    return std::min<std::size_t>(128 << 10, std::bit_floor(kRingsBytes / ranks));
  }
  static constexpr std::size_t lane_bytes(std::size_t ranks) {
    return std::min<std::size_t>(512 << 10, std::bit_floor(kLanesBytes / ranks));
  }
  /// The most a message may have to lie in the ring as a whole.
  static constexpr std::size_t whole_bytes(std::size_t ranks) {
    return ring_bytes(ranks) / 4 - sizeof(MessageRecord);
  }
  /// The lane is filled and emptied in parts of this size, so that both sides work at once.
  static constexpr std::size_t part_bytes(std::size_t ranks) {
    return std::min<std::size_t>(64 << 10, lane_bytes(ranks) / 4);
  }
};
static_assert(Outbox::ring_bytes(kMaxRanks) % kPageBytes == 0 &&
              Outbox::lane_bytes(kMaxRanks) % kPageBytes == 0);

/// One group's words of one rank, in the rank's data segment.
struct Slot {
  Line lines[2];
  Progress progress;
  State state;
};
static_assert(sizeof(Slot) == 1024 && kPageBytes % sizeof(Slot) == 0);

/// What a sleeping rank waits on. In the sleeper's control segment; peers count `rings` up and
/// wake.
struct alignas(64) Bell {
  std::atomic<std::uint32_t> rings;
  std::atomic<std::uint32_t> sleepers;  // threads of the owner that sleep or are about to
};

/// Collectives and transfers sleep apart, so that a waiting receive costs a collective no wake-up.
struct Bells {
  Bell collective;
  Bell transfer;
};

/// Sizes and offsets of a process's segments; equal for all processes whose two numbers are equal.
struct Layout {
  std::size_t slots = 0;
  std::size_t pipeline_bytes = 0;  // staging of the pipelined collectives, per slot

  static constexpr std::size_t kHeaderBytes = kPageBytes;
  static constexpr std::size_t kOneShotBytes = 64 << 10;  // per parity
  static constexpr std::size_t kOutboxBytes =
      (sizeof(Outbox) + kPageBytes - 1) / kPageBytes * kPageBytes;

  static constexpr std::size_t kMostSlots = 65536;
  // A half of the pipeline area has to hold a cache line pair of every rank and one more.
  static constexpr std::size_t kLeastPipelineBytes = 2 * kLineBytes * (kMaxRanks + 1);
  static constexpr std::size_t kMostPipelineBytes = std::size_t{1} << 30;

  bool valid() const {
    return slots >= 1 && slots <= kMostSlots && pipeline_bytes >= kLeastPipelineBytes &&
           pipeline_bytes <= kMostPipelineBytes && pipeline_bytes % kPageBytes == 0;
  }

  std::size_t slot_offset(std::size_t slot) const { return kHeaderBytes + slot * sizeof(Slot); }
  std::size_t staging_bytes() const { return 2 * kOneShotBytes + pipeline_bytes + kOutboxBytes; }
  std::size_t staging_offset(std::size_t slot) const {
    const std::size_t table = kHeaderBytes + slots * sizeof(Slot);
    return (table + kPageBytes - 1) / kPageBytes * kPageBytes + slot * staging_bytes();
  }
  std::size_t one_shot_offset(std::size_t slot, int parity) const {
    return staging_offset(slot) + static_cast<std::size_t>(parity) * kOneShotBytes;
  }
  std::size_t pipeline_offset(std::size_t slot) const {
    return staging_offset(slot) + 2 * kOneShotBytes;
  }
  std::size_t outbox_offset(std::size_t slot) const {
    return pipeline_offset(slot) + pipeline_bytes;
  }
  std::size_t data_bytes() const { return staging_offset(slots); }
  std::size_t control_bytes() const {
    return (slots * sizeof(Bells) + kPageBytes - 1) / kPageBytes * kPageBytes;
  }
};

}  // namespace fvd::shm
