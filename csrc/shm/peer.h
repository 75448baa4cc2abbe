// Another process (or, in thread tests, another rank's domain) whose segments are mapped here.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "shm/segment.h"
#include "shm/slot.h"

namespace fvd::shm {

/// Random, made by each domain for itself; two groups of one process share a domain.
using DomainId = std::array<std::uint64_t, 2>;

/// What a rank tells the others through the store when it joins a group. The store is open to
/// anybody, so nothing in it lets anybody in: it only says whom to expect.
struct PeerInfo {
  std::string boot_id;
  std::uint64_t pid_namespace = 0;
  std::uint64_t uid = 0;
  std::uint64_t pid = 0;
  std::uint64_t start_time = 0;
  DomainId domain{};
  std::uint64_t nonce = 0;  // of this joining; the group's epoch is made of everybody's
  std::uint64_t rank = 0;
  std::uint64_t size = 0;
  std::uint64_t slot = 0;
  std::uint64_t slots = 0;
  std::uint64_t pipeline_bytes = 0;
  std::uint64_t one_shot_bytes = 0;
  std::vector<DomainId> connected;  // domains already mapped by this one

  std::string serialize() const;

  /// @throws Error(kMismatch) if `bytes` is not of this version of the library or malformed; `rank`
  /// is for the message.
  static PeerInfo parse(const std::string& bytes, int rank);

  Layout layout() const { return {slots, pipeline_bytes}; }
};

/// A mapped process. Shared by all groups; freed with the last of them once the process is dead.
struct Peer {
  PeerInfo info;  // as of the first group; `slot`, `nonce`, `rank` and `size` are each group's own
  Segment data_segment;
  Segment control_segment;
  const std::byte* data = nullptr;
  std::byte* control = nullptr;
  int pidfd = -1;
  std::atomic<bool> dead{false};        // set by the watcher; released after `last_words`
  std::string last_words;               // how it ended, if the kernel told
  std::shared_ptr<void> keep_mapped{};  // thread tests: the other domain's memory

  Peer() = default;
  Peer(const Peer&) = delete;
  ~Peer();

  Layout layout() const { return info.layout(); }
  const Slot* slot(std::size_t index) const {
    return reinterpret_cast<const Slot*>(data + layout().slot_offset(index));
  }
  Bells* bells(std::size_t index) const { return reinterpret_cast<Bells*>(control) + index; }
};

}  // namespace fvd::shm
