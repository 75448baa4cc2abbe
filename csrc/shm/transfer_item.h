// What the mailbox keeps about one transfer and about one other rank. For mailbox*.cpp and
// match_table alone. Everything is guarded by the mailbox's mutex.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <exception>
#include <list>
#include <memory>
#include <unordered_map>

#include "comm/block_layout.h"
#include "comm/types.h"
#include "shm/slot.h"

namespace fvd::shm {

struct TransferItem {
  enum class What { kSend, kRecv } what;
  DataType type = DataType::kUInt8;
  std::uint64_t bytes = 0;
  int peer = 0;  // destination, or source (kAnySource until matched)
  int tag = 0;
  bool begun = false;  // the peer knows of it: it cannot be given up alone
  bool done = false;   // the owner may use the memory, nothing is left to do
  std::exception_ptr error;
  std::uint64_t moved = 0;                                   // bytes through the lane so far
  std::chrono::steady_clock::time_point next_check{};        // see Mailbox::poll_locked
  std::list<std::shared_ptr<TransferItem>>::iterator place;  // in Mailbox::items_ until done

  explicit TransferItem(What what) : what(what) {}
};

struct Sending : TransferItem {
  Sending() : TransferItem(What::kSend) {}
  ConstBlock data;
};

struct Receiving : TransferItem {
  Receiving() : TransferItem(What::kRecv) {}
  Block data;
  std::uint64_t order = 0;  // of the receives of this rank
};

/// What is under way between this rank and another one.
struct Link {
  int peer = 0;

  // Towards that rank.
  std::deque<std::uint64_t> wanted;             // numbers of its messages to ask for
  std::deque<std::shared_ptr<Sending>> queued;  // not in the ring yet; in the order of the calls
  std::unordered_map<std::uint64_t, std::shared_ptr<Sending>> announced;  // not asked for yet
  std::deque<std::shared_ptr<Sending>> leaving;  // through the lane, in the order asked for
  std::uint64_t next_number = 0;
  std::uint64_t written = 0;
  std::uint64_t whole = 0;  // of that, records of whole messages
  std::uint64_t laid = 0;
  std::uint64_t read_there = 0;  // what that rank was last seen to have read, matched and taken
  std::uint64_t matched_there = 0;
  std::uint64_t taken_there = 0;
  bool ring_reserved = false;
  bool lane_reserved = false;

  // From that rank.
  std::deque<std::shared_ptr<Receiving>> coming;  // through the lane, in the order asked for
  std::uint64_t read = 0;
  std::uint64_t matched = 0;
  std::uint64_t taken = 0;
  std::uint64_t written_there = 0;  // what that rank was last seen to have written and laid
  std::uint64_t laid_there = 0;
};

/// A multiple of kRecordAlign.
inline constexpr std::uint64_t record_bytes(std::uint64_t payload) {
  return (sizeof(MessageRecord) + payload + kRecordAlign - 1) / kRecordAlign * kRecordAlign;
}

}  // namespace fvd::shm
