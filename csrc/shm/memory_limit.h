// How much memory this process may still take. Reserving past a memory cgroup's limit does not
// fail: the out-of-memory killer ends the process. So the limit is read first.
#pragma once

#include <cstddef>
#include <string>

namespace fvd::shm {

struct MemoryRoom {
  std::size_t available = 0;     // MemAvailable of the machine
  std::size_t cgroup_limit = 0;  // 0: none found
  std::size_t cgroup_used = 0;

  std::size_t free() const noexcept;
};

/// `root` is "/" except in tests.
MemoryRoom read_memory_room(const std::string& root = "/");

/// @throws Error(kSystem) with the numbers if `bytes` is more than three quarters of what is left.
void check_memory_limit(std::size_t bytes);

/// "12 MiB free: machine 300 MiB, cgroup 500 of 512 MiB used".
std::string memory_summary();

}  // namespace fvd::shm
