// Where another process is, and how to open what it has: for memory whose address travels by other
// ways than a socket.
#pragma once

#include <cstdint>
#include <string>

#include "shm/segment.h"

namespace fvd::shm {

/// One process among all of all hosts and times.
struct ProcessAddress {
  std::string boot_id;
  std::uint64_t pid_namespace = 0;
  std::uint64_t uid = 0;
  std::uint64_t pid = 0;
  std::uint64_t start_time = 0;

  static ProcessAddress own();
};

/// More than any process can have; what came from outside is looked at before it is used.
inline constexpr std::uint64_t kMostDescriptor = 1 << 30;

/// How messages call what lies there (`queue "tp"`), the process it belongs to (`its writer`), and
/// the way out for whoever is on another host.
struct ForeignNames {
  std::string what;
  std::string owner;
  std::string elsewhere;
};

/// @throws Error(kInvalidArgument) if the process is on another host, in another PID namespace or
/// of another user, so that its pid may mean another one here; Error(kPeerLost) if it has ended.
void check_reachable(const ProcessAddress& address, const ForeignNames& names);

/// The memfd of `bytes` that is descriptor `fd` of that process, opened through /proc/<pid>/fd. The
/// kernel grants it to processes of the same user (and root) only. Whose it is, its seals and its
/// size are checked here; that it is still the same memory the caller must know from its content.
/// @throws Error(kPeerLost) if the process has ended or has no such descriptor any more;
/// Error(kSystem)
Segment attach_foreign(const ProcessAddress& address, std::uint64_t fd, std::uint64_t bytes,
                       bool writable, const ForeignNames& names);

}  // namespace fvd::shm
