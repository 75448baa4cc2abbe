// What lies where in a process's two segments. docs/shared_memory.md draws it and names every
// atomic with its partner; the two are to be changed together.
//
// Every word has one writer, the owner of the segment, except the bells: they lie in the control
// segment, which peers may write, and hold nothing anybody relies on but being woken.
#pragma once

#include <atomic>
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
  char reason[616];                  // zero-terminated
};

/// One message under way, in the sender's outbox. Written by the sender; the receiver answers in
/// its own Receipts. A generation is one use of the envelope.
struct alignas(kLineBytes) Envelope {
  std::atomic<std::uint64_t>
      posted;  // 2 * generation + 1 while it holds a message, else 2 * generation
  std::atomic<std::uint64_t> address;  // destination << 32 | tag
  std::atomic<std::uint64_t>
      order;  // of the sender's messages to anybody: first sent, first received
  std::atomic<std::uint64_t> bytes;
  std::atomic<std::uint64_t> type;  // DataType
  std::atomic<std::uint64_t>
      written;  // generation << 32 | chunks laid into the two halves of its buffer
};
static_assert(sizeof(Envelope) == kLineBytes);

/// What goes between two ranks beside the collectives; in the staging memory of each. See
/// mailbox.h.
struct Outbox {
  static constexpr std::size_t kEnvelopes = 16;
  static constexpr std::size_t kChunkBytes = 32 << 10;

  Envelope envelopes[kEnvelopes];
  // receipts[s][e]: generation << 32 | chunks this rank has taken out of envelope e of rank s; all
  // chunks and one more once it is done with the message.
  std::atomic<std::uint64_t> receipts[kMaxRanks][kEnvelopes];
  alignas(kPageBytes) std::byte chunks[kEnvelopes][2][kChunkBytes];
};

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
