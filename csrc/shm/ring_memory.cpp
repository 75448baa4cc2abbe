#include "shm/ring_memory.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "comm/error.h"
#include "shm/process.h"

namespace fvd::shm {
namespace {

/// One of the writer's descriptors, opened anew for this process.
int open_of(const RingAddress& address, std::uint64_t number, int flags) {
  const std::string path = text("/proc/", address.pid, "/fd/", number);
  const int fd = open(path.c_str(), flags | O_CLOEXEC);
  const int reason = errno;
  if (fd != -1) return fd;
  const bool ended = has_ended(static_cast<pid_t>(address.pid), address.start_time);
  FVD_CHECK(!ended && reason != ENOENT, kPeerLost, "queue \"", address.name, "\": its writer (pid ",
            address.pid, ") ", ended ? "has ended" : "has closed it");
  throw Error(Kind::kSystem,
              text("queue \"", address.name, "\": opening ", path, ": ", errno_text(reason),
                   ". The writer's descriptors must be open to its own user: it may not be "
                   "non-dumpable (PR_SET_DUMPABLE 0), nor /proc be mounted with hidepid"));
}

Segment attach_segment(const RingAddress& address, std::uint64_t number, std::uint64_t bytes,
                       bool writable) {
  const int fd = open_of(address, number, writable ? O_RDWR : O_RDONLY);
  struct stat status {};
  const bool ours = fstat(fd, &status) == 0 && status.st_uid == geteuid();
  if (!ours) close(fd);
  FVD_CHECK(ours, kSystem, "queue \"", address.name, "\": descriptor ", number, " of process ",
            address.pid, " is not of this user (", geteuid(), "). Refused");
  return Segment::attach(fd, bytes, writable);
}

/// The ids of two PID namespaces or boots would let a pid mean another process.
void check_reachable(const RingAddress& address) {
  FVD_CHECK(address.boot_id == boot_id(), kInvalidArgument, "queue \"", address.name,
            "\" is on another host (boot id ", address.boot_id, ", here ", boot_id(),
            "); readers of other hosts come by create_from_process_group");
  FVD_CHECK(address.pid_namespace == pid_namespace(), kInvalidArgument, "queue \"", address.name,
            "\" is in another PID namespace (", address.pid_namespace, ", here ", pid_namespace(),
            "); containers that share a queue must share that namespace");
  FVD_CHECK(address.uid == geteuid(), kInvalidArgument, "queue \"", address.name,
            "\" belongs to user ", address.uid, ", this process to user ", geteuid());
  FVD_CHECK(!has_ended(static_cast<pid_t>(address.pid), address.start_time), kPeerLost, "queue \"",
            address.name, "\": its writer (pid ", address.pid, ") has ended");
}

}  // namespace

std::shared_ptr<RingMemory> RingMemory::create(const RingOptions& options) {
  FVD_CHECK(options.readers >= 1 && options.readers <= kMaxRanks, kInvalidArgument, "queue \"",
            options.name, "\": ", options.readers, " readers; there may be 1 to ", kMaxRanks);
  const RingLayout layout{options.slots, options.slot_bytes};
  FVD_CHECK(layout.valid(), kInvalidArgument, "queue \"", options.name, "\": ", options.slots,
            " chunks of ", options.slot_bytes, " bytes; there may be 1 to ", RingLayout::kMostSlots,
            " chunks of ", RingLayout::kLeastSlotBytes, " bytes and more, ",
            RingLayout::kMostDataBytes, " bytes in all");
  std::shared_ptr<RingMemory> memory(new RingMemory);
  memory->data_ = Segment::create("fastvideo_dist-ring", layout.data_bytes(), options.kind);
  memory->control_ =
      Segment::create("fastvideo_dist-ring-control", RingLayout::control_bytes(), options.kind);
  memory->data_.reserve(0, kPageBytes);
  memory->control_.reserve(0, RingLayout::control_bytes());

  RingAddress& address = memory->address_;
  address.boot_id = boot_id();
  address.pid_namespace = pid_namespace();
  address.uid = geteuid();
  address.pid = static_cast<std::uint64_t>(getpid());
  address.start_time = start_time(getpid());
  const auto random = getrandom(address.id.data(), sizeof(address.id), 0);
  FVD_SYS_CHECK(random == static_cast<ssize_t>(sizeof(address.id)) ? 0 : -1, "getrandom");
  address.readers = options.readers;
  address.slots = options.slots;
  address.slot_bytes = options.slot_bytes;
  address.data_fd = static_cast<std::uint64_t>(memory->data_.fd());
  address.control_fd = static_cast<std::uint64_t>(memory->control_.fd());
  address.name = options.name;

  RingHead& head = *new (memory->data_.data()) RingHead{};
  std::memcpy(head.magic, kRingMagic, sizeof(kRingMagic));
  head.id = address.id;
  head.readers = options.readers;
  head.slots = options.slots;
  head.slot_bytes = options.slot_bytes;
  new (memory->control_.data()) RingControl{};
  memory->data_.seal(true);
  memory->control_.seal(false);
  return memory;
}

std::shared_ptr<RingMemory> RingMemory::attach(const RingAddress& address) {
  check_reachable(address);
  std::shared_ptr<RingMemory> memory(new RingMemory);
  memory->address_ = address;
  memory->data_ = attach_segment(address, address.data_fd, address.layout().data_bytes(), false);
  memory->control_ = attach_segment(address, address.control_fd, RingLayout::control_bytes(), true);
  const RingHead& head = memory->head();
  const bool same = std::memcmp(head.magic, kRingMagic, sizeof(kRingMagic)) == 0 &&
                    head.id == address.id && head.readers == address.readers &&
                    head.slots == address.slots && head.slot_bytes == address.slot_bytes;
  FVD_CHECK(same, kPeerLost, "queue \"", address.name, "\": process ", address.pid,
            " has closed it; its descriptor ", address.data_fd, " is something else by now");
  return memory;
}

}  // namespace fvd::shm
