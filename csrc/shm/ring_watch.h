// Whether the processes at the other ends of a ring still live.
#pragma once

#include <poll.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "shm/ring_memory.h"

namespace fvd::shm {

/// Looks when asked; it has no thread. Of one end of a ring, and used by one thread at a time.
class RingWatch {
 public:
  static constexpr int kWriter = -1;

  /// `self`: the reader this end is, or kWriter. It watches all others.
  RingWatch(RingMemory& memory, int self);
  ~RingWatch();
  RingWatch(const RingWatch&) = delete;

  /// "reader 1 (pid 4711): ended by signal 9 (Killed)" of one that ended without closing its end;
  /// nothing if all live. A reader is watched from when it attached.
  std::optional<std::string> dead();

  /// "reader 1 (pid 4711)" or "writer (pid 4711)", with its state.
  std::string describe(int party) const;

 private:
  struct Party {
    int number = 0;  // of the reader, or kWriter
    std::uint64_t pid = 0;
    std::uint64_t start_time = 0;
    int pidfd = -1;
  };

  bool open(Party& party);
  bool has_left(const Party& party) const;
  bool ended(const Party& party, bool pidfd_readable) const;

  RingMemory& memory_;
  std::vector<Party> parties_;
  std::vector<pollfd> fds_;
};

}  // namespace fvd::shm
