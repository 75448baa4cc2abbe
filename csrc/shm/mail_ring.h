// The rings and lanes of an outbox: where each lies, and how blocks go in and out. Knows no words
// and no waiting.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "shm/copy.h"
#include "shm/slot.h"

namespace fvd::shm {

/// Memory used over and over; positions count bytes and only grow. `Byte` is const for a peer's.
template <typename Byte>
struct MailRing {
  Byte* data;
  std::size_t bytes;

  Byte* at(std::uint64_t position) const { return data + position % bytes; }

  /// Copies [position, position + count) to byte `offset` of `to` and what follows it.
  void read(std::uint64_t position, Block to, std::size_t offset, std::size_t count,
            CacheHint hint = CacheHint::kCached) const {
    const std::size_t first = up_to_end(position, count);
    copy_range(to, offset, at(position), first, hint);
    copy_range(to, offset + first, data, count - first, hint);
  }

  /// The reverse.
  void write(std::uint64_t position, ConstBlock from, std::size_t offset, std::size_t count) const {
    const std::size_t first = up_to_end(position, count);
    copy_range(at(position), from, offset, first);
    copy_range(data, from, offset + first, count - first);
  }

 private:
  std::size_t up_to_end(std::uint64_t position, std::size_t count) const {
    return std::min<std::size_t>(count, bytes - position % bytes);
  }
};

/// The ring of `outbox` towards `rank`, in a group of `ranks`.
template <typename Box>
auto ring_towards(Box& outbox, int rank, int ranks) {
  const std::size_t bytes = Outbox::ring_bytes(static_cast<std::size_t>(ranks));
  using Byte = std::remove_reference_t<decltype(outbox.rings[0])>;
  return MailRing<Byte>{outbox.rings + static_cast<std::size_t>(rank) * bytes, bytes};
}

/// Its lane.
template <typename Box>
auto lane_towards(Box& outbox, int rank, int ranks) {
  const std::size_t bytes = Outbox::lane_bytes(static_cast<std::size_t>(ranks));
  using Byte = std::remove_reference_t<decltype(outbox.lanes[0])>;
  return MailRing<Byte>{outbox.lanes + static_cast<std::size_t>(rank) * bytes, bytes};
}

}  // namespace fvd::shm
