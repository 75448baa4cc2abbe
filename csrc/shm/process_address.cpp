#include "shm/process_address.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "comm/error.h"
#include "shm/process.h"

namespace fvd::shm {
namespace {

int open_foreign(const ProcessAddress& address, std::uint64_t number, int flags,
                 const ForeignNames& names) {
  const std::string path = text("/proc/", address.pid, "/fd/", number);
  const int fd = open(path.c_str(), flags | O_CLOEXEC);
  const int reason = errno;
  if (fd != -1) return fd;
  const bool ended = has_ended(static_cast<pid_t>(address.pid), address.start_time);
  FVD_CHECK(!ended && reason != ENOENT, kPeerLost, names.what, ": ", names.owner, " (pid ",
            address.pid, ") ", ended ? "has ended" : "has closed it");
  throw Error(Kind::kSystem,
              text(names.what, ": opening ", path, ": ", errno_text(reason),
                   ". The descriptors of that process must be open to its own user: it may not be "
                   "non-dumpable (PR_SET_DUMPABLE 0), nor /proc be mounted with hidepid"));
}

}  // namespace

ProcessAddress ProcessAddress::own() {
  return {shm::boot_id(), shm::pid_namespace(), geteuid(), static_cast<std::uint64_t>(getpid()),
          shm::start_time(getpid())};
}

void check_reachable(const ProcessAddress& address, const ForeignNames& names) {
  FVD_CHECK(address.boot_id == boot_id(), kInvalidArgument, names.what,
            " is on another host (boot id ", address.boot_id, ", here ", boot_id(), "); ",
            names.elsewhere);
  FVD_CHECK(address.pid_namespace == pid_namespace(), kInvalidArgument, names.what,
            " is in another PID namespace (", address.pid_namespace, ", here ", pid_namespace(),
            "); containers that are to reach it must share that namespace");
  FVD_CHECK(address.uid == geteuid(), kInvalidArgument, names.what, " belongs to user ",
            address.uid, ", this process to user ", geteuid());
  FVD_CHECK(!has_ended(static_cast<pid_t>(address.pid), address.start_time), kPeerLost, names.what,
            ": ", names.owner, " (pid ", address.pid, ") has ended");
}

Segment attach_foreign(const ProcessAddress& address, std::uint64_t number, std::uint64_t bytes,
                       bool writable, const ForeignNames& names) {
  const int fd = open_foreign(address, number, writable ? O_RDWR : O_RDONLY, names);
  struct stat status {};
  const bool ours = fstat(fd, &status) == 0 && status.st_uid == geteuid();
  if (!ours) close(fd);
  FVD_CHECK(ours, kSystem, names.what, ": descriptor ", number, " of process ", address.pid,
            " is not of this user (", geteuid(), "). Refused");
  return Segment::attach(fd, bytes, writable);
}

}  // namespace fvd::shm
