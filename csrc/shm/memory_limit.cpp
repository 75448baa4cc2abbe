#include "shm/memory_limit.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "comm/error.h"

namespace fvd::shm {
namespace {

constexpr std::size_t kMiB = 1 << 20;

/// The number at the start of a file; `fallback` if there is none (absent file, "max").
std::size_t number_in(const std::string& path, std::size_t fallback) {
  std::ifstream file(path);
  std::size_t value = 0;
  return file >> value ? value : fallback;
}

std::size_t machine_available(const std::string& root) {
  std::ifstream file(root + "proc/meminfo");
  std::string word;
  while (file >> word) {
    std::size_t kib = 0;
    if (word == "MemAvailable:" && file >> kib) return kib * 1024;
  }
  return std::numeric_limits<std::size_t>::max();
}

/// This process's path in the hierarchy of `controller` ("" for cgroup v2), from /proc/self/cgroup.
std::string cgroup_path(const std::string& root, const std::string& controller) {
  std::ifstream file(root + "proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {
    const auto first = line.find(':');
    const auto second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    std::istringstream names(line.substr(first + 1, second - first - 1));
    std::string found;
    if (controller.empty() && first + 1 == second) return line.substr(second + 1);
    while (std::getline(names, found, ',')) {
      if (!controller.empty() && found == controller) return line.substr(second + 1);
    }
  }
  return "/";
}

/// File pages the kernel would give back before it refuses memory; charged, but not a reason to
/// refuse.
std::size_t reclaimable(const std::string& folder) {
  std::ifstream file(folder + "/memory.stat");
  std::string word;
  std::size_t bytes = 0;
  while (file >> word >> bytes) {
    if (word == "inactive_file" || word == "total_inactive_file") return bytes;
  }
  return 0;
}

/// The tightest limit on the way from `path` up to the top of the hierarchy mounted at `mount`. In
/// a container the path often does not exist below the mount; the mount itself is then the
/// container's own.
void tighten(MemoryRoom& room, const std::string& mount, std::string path, const char* limit_file,
             const char* used_file) {
  constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();
  while (true) {
    const std::string folder = mount + (path == "/" ? "" : path);
    const std::size_t limit = number_in(folder + "/" + limit_file, kNone);
    // cgroup v1 says "no limit" with a number near 2^63.
    if (limit < kNone / 4) {
      const std::size_t charged = number_in(folder + "/" + used_file, 0);
      const std::size_t used = charged - std::min(charged, reclaimable(folder));
      const std::size_t left = limit - std::min(used, limit);
      if (room.cgroup_limit == 0 ||
          left < room.cgroup_limit - std::min(room.cgroup_used, room.cgroup_limit)) {
        room.cgroup_limit = limit;
        room.cgroup_used = used;
      }
    }
    if (path.empty() || path == "/") return;
    const auto parent = path.rfind('/');
    path = parent == std::string::npos || parent == 0 ? "/" : path.substr(0, parent);
  }
}

}  // namespace

std::size_t MemoryRoom::free() const noexcept {
  if (cgroup_limit == 0) return available;
  return std::min(available, cgroup_limit - std::min(cgroup_used, cgroup_limit));
}

MemoryRoom read_memory_room(const std::string& root) {
  MemoryRoom room;
  room.available = machine_available(root);
  tighten(room, root + "sys/fs/cgroup", cgroup_path(root, ""), "memory.max", "memory.current");
  tighten(room, root + "sys/fs/cgroup/memory", cgroup_path(root, "memory"), "memory.limit_in_bytes",
          "memory.usage_in_bytes");
  return room;
}

std::string memory_summary() {
  const MemoryRoom room = read_memory_room();
  std::string summary =
      text(room.free() / kMiB, " MiB free: machine ", room.available / kMiB, " MiB");
  if (room.cgroup_limit != 0) {
    summary += text(", memory cgroup ", room.cgroup_used / kMiB, " of ", room.cgroup_limit / kMiB,
                    " MiB used");
  }
  return summary;
}

void check_memory_limit(std::size_t bytes) {
  const MemoryRoom room = read_memory_room();
  FVD_CHECK(bytes <= room.free() / 4 * 3, kSystem, "shared memory: ", bytes,
            " bytes are needed but only three quarters of what is left may be taken (",
            memory_summary(),
            "); raise the memory limit or set FASTVIDEO_DIST_STAGING_BYTES lower");
}

}  // namespace fvd::shm
