#include "shm/process.h"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <sstream>
#include <vector>

#include "comm/error.h"

namespace fvd::shm {
namespace {

struct Stat {
  char state = '?';
  std::uint64_t start_time = 0;
  int exit_code = -1;  // wait status, only while a zombie and only if we may know
};

/// /proc/<pid>/stat; false if there is no such process. See proc(5) for the numbering of the
/// fields.
bool read_stat(pid_t pid, Stat& stat) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return false;
  const auto name_end = line.rfind(')');  // the command's name may hold blanks and brackets
  if (name_end == std::string::npos) return false;
  std::istringstream rest(line.substr(name_end + 1));
  std::vector<std::string> fields(2);  // so that fields[n] is proc(5)'s field n + 1
  for (std::string field; rest >> field;) fields.push_back(field);
  if (fields.size() < 22) return false;
  stat.state = fields[2][0];
  stat.start_time = std::strtoull(fields[21].c_str(), nullptr, 10);
  if (fields.size() > 51) stat.exit_code = std::atoi(fields[51].c_str());
  return true;
}

std::string describe_exit(int status) {
  if (WIFSIGNALED(status)) {
    return text("ended by signal ", WTERMSIG(status), " (", strsignal(WTERMSIG(status)), ")");
  }
  return text("exited with code ", WEXITSTATUS(status));
}

}  // namespace

int open_pidfd(pid_t pid) noexcept {
#ifdef SYS_pidfd_open
  return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
#else
  return -1;
#endif
}

std::uint64_t start_time(pid_t pid) {
  Stat stat;
  return read_stat(pid, stat) ? stat.start_time : 0;
}

bool has_ended(pid_t pid, std::uint64_t started) {
  Stat stat;
  return !read_stat(pid, stat) || stat.start_time != started || stat.state == 'Z' ||
         stat.state == 'X';
}

std::string describe_state(pid_t pid, std::uint64_t started) {
  Stat stat;
  if (!read_stat(pid, stat) || stat.start_time != started) return "exited";
  switch (stat.state) {
    case 'R':
      return "state R (running)";
    case 'S':
      return "state S (sleeping)";
    case 'D':
      return "state D (waiting for a device)";
    case 'T':
      return "state T (stopped by a signal)";
    case 't':
      return "state t (stopped by a debugger)";
    case 'Z':
    case 'X':
      return stat.exit_code > 0 ? describe_exit(stat.exit_code) : "exited";
    default:
      return text("state ", stat.state);
  }
}

std::string boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  FVD_CHECK(std::getline(file, id) && !id.empty(), kSystem,
            "/proc/sys/kernel/random/boot_id cannot be read; is /proc mounted?");
  return id;
}

std::uint64_t pid_namespace() {
  struct stat status {};
  return stat("/proc/self/ns/pid", &status) == 0 ? status.st_ino : 0;
}

}  // namespace fvd::shm
