// What the mailbox keeps about one transfer, and the arithmetic of its chunks. For mailbox*.cpp
// alone.
#pragma once

#include <algorithm>
#include <exception>

#include "shm/mailbox.h"

namespace fvd::shm {

inline constexpr std::uint64_t stamp(std::uint64_t generation, std::uint64_t chunks) {
  return generation << 32 | chunks;
}
inline std::uint64_t chunks_of(std::uint64_t bytes) {
  return (bytes + Outbox::kChunkBytes - 1) / Outbox::kChunkBytes;
}
/// Bytes of chunk `index` of a message of `bytes`.
inline std::size_t chunk_bytes(std::uint64_t bytes, std::uint64_t index) {
  return std::min<std::uint64_t>(Outbox::kChunkBytes, bytes - index * Outbox::kChunkBytes);
}

/// One transfer. All fields are guarded by the mailbox's mutex.
struct Mailbox::Item {
  enum class What { kSend, kRecv } what = What::kSend;
  DataType type = DataType::kUInt8;
  std::uint64_t bytes = 0;
  int peer = 0;  // destination, or source (kAnySource until matched)
  int tag = 0;
  int envelope = -1;
  std::uint64_t generation = 0;
  std::uint64_t chunks = 0;  // moved so far
  bool done = false;         // the owner may use the memory
  bool settled = false;      // nothing is left to drive
  std::exception_ptr error;
  virtual ~Item() = default;
};

struct Mailbox::Sending : Item {
  ConstBlock data;
};

struct Mailbox::Receiving : Item {
  Block data;
};

}  // namespace fvd::shm
