// What lies where in the two segments of a ring: one process writes messages, others read each of
// them. docs/shared_memory.md draws it and names every atomic with its partner; the two are to be
// changed together.
//
// The data segment belongs to the writer alone, by the kernel's word. The control segment may be
// written by everybody attached; what is read there is checked against what the writer knows.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

#include "shm/slot.h"

namespace fvd::shm {

/// 128 random bits: tells a ring from whatever else may have its descriptor's number by now.
using RingId = std::array<std::uint64_t, 2>;

inline constexpr char kRingMagic[16] = "fvd-ring-1";

/// At the beginning of the data segment. All words are the writer's.
struct RingHead {
  enum Code : std::uint32_t { kOpen, kClosed, kBroken };

  // Plain: written before anybody else knows the segment.
  char magic[sizeof(kRingMagic)];
  RingId id;
  std::uint64_t readers;
  std::uint64_t slots;
  std::uint64_t slot_bytes;

  /// How far the stream is filled: slot number * slot_bytes + bytes in that slot. A slot that will
  /// not be filled further counts as full. Modulo 2^64.
  alignas(kLineBytes) std::atomic<std::uint64_t> published;

  alignas(kLineBytes) std::atomic<std::uint32_t> code;  // released after `reason`
  std::atomic<std::uint32_t> ready;                     // every reader has attached
  char reason[496];                                     // zero-terminated
};
static_assert(sizeof(RingHead) == 768 && sizeof(RingHead) <= kPageBytes);

/// In a message's table of lengths: its readers are to get this part in memory of their choice.
inline constexpr std::uint64_t kMarkedPart = std::uint64_t{1} << 63;

/// What a message is, so that nobody takes one for the other.
enum class MessageKind : std::uint32_t {
  kParts,  // a table of lengths, then so many parts
  kRaw,    // one whole slot, to be read in place
};

/// Before the bytes of each slot. Plain, the writer's; published by RingHead::published.
struct alignas(64) RingSlot {
  std::uint64_t number;  // of this slot in the stream, from 0
  std::uint64_t first;   // number of the slot in which its message begins
  std::uint64_t bytes;   // of the whole message
  std::uint32_t parts;
  MessageKind kind;

  std::byte* data() { return reinterpret_cast<std::byte*>(this + 1); }
  const std::byte* data() const { return reinterpret_cast<const std::byte*>(this + 1); }
};
static_assert(sizeof(RingSlot) == 64);

/// One reader's words, in the control segment.
struct alignas(kLineBytes) RingReaderWords {
  std::atomic<std::uint64_t> taken;       // slots it will not look at again
  std::atomic<std::uint64_t> pid;         // 0 until a process has claimed this reader
  std::atomic<std::uint64_t> start_time;  // of that process; follows `pid`
  std::atomic<std::uint32_t> left;        // closed in good order
};
static_assert(sizeof(RingReaderWords) == kLineBytes);

/// The control segment. Readers share one bell: a message wakes all of them with one system call.
struct RingControl {
  alignas(kLineBytes) Bell writer;
  alignas(kLineBytes) Bell readers;
  RingReaderWords reader[kMaxRanks];
};

/// Sizes and offsets; follows from two numbers.
struct RingLayout {
  std::uint64_t slots = 0;
  std::uint64_t slot_bytes = 0;

  static constexpr std::uint64_t kMostSlots = 65536;
  static constexpr std::uint64_t kLeastSlotBytes = 64;
  static constexpr std::uint64_t kMostDataBytes = std::uint64_t{1} << 44;

  bool valid() const {
    return slots >= 1 && slots <= kMostSlots && slot_bytes >= kLeastSlotBytes &&
           slot_bytes <= kMostDataBytes / slots && data_bytes() <= kMostDataBytes;
  }
  /// From slot to slot: whole pages, so that one can be reserved without its neighbour.
  std::uint64_t stride() const {
    return (sizeof(RingSlot) + slot_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  }
  std::uint64_t slot_offset(std::uint64_t number) const {
    return kPageBytes + number % slots * stride();
  }
  std::uint64_t data_bytes() const { return kPageBytes + slots * stride(); }
  static constexpr std::uint64_t control_bytes() {
    return (sizeof(RingControl) + kPageBytes - 1) / kPageBytes * kPageBytes;
  }
};

}  // namespace fvd::shm
