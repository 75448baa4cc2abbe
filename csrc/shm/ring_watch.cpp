#include "shm/ring_watch.h"

#include <unistd.h>

#include "comm/error.h"
#include "shm/process.h"

namespace fvd::shm {
namespace {

/// -1 also if the pid belongs to another process by now, which the start time then tells.
int open_pidfd_of(std::uint64_t pid, std::uint64_t started) {
  const int fd = open_pidfd(static_cast<pid_t>(pid));
  if (fd == -1 || start_time(static_cast<pid_t>(pid)) == started) return fd;
  close(fd);
  return -1;
}

}  // namespace

RingWatch::RingWatch(RingMemory& memory, int self) : memory_(memory) {
  const auto readers = static_cast<int>(memory.address().readers);
  for (int reader = 0; reader < readers; ++reader) {
    if (reader != self) parties_.push_back({reader});
  }
  if (self != kWriter) {
    const RingAddress& address = memory.address();
    const int pidfd = open_pidfd_of(address.pid, address.start_time);
    parties_.push_back({kWriter, address.pid, address.start_time, pidfd});
  }
  fds_.resize(parties_.size());
}

RingWatch::~RingWatch() {
  for (const Party& party : parties_) {
    if (party.pidfd != -1) close(party.pidfd);
  }
}

/// Whether the party is there to be watched. A pid is looked up once, when its process appears.
bool RingWatch::open(Party& party) {
  if (party.pid != 0) return true;
  const RingReaderWords& words = memory_.control().reader[party.number];
  const std::uint64_t started = words.start_time.load(std::memory_order_acquire);
  if (started == 0) return false;  // follows the pid
  party.pid = words.pid.load(std::memory_order_relaxed);
  party.start_time = started;
  party.pidfd = open_pidfd_of(party.pid, started);
  return true;
}

bool RingWatch::has_left(const Party& party) const {
  if (party.number == kWriter) {
    return memory_.head().code.load(std::memory_order_acquire) != RingHead::kOpen;
  }
  return memory_.control().reader[party.number].left.load(std::memory_order_acquire) != 0;
}

bool RingWatch::ended(const Party& party, bool pidfd_readable) const {
  if (party.pidfd != -1) return pidfd_readable;
  // The kernel has no pidfds, or the process was gone before it could be watched.
  return has_ended(static_cast<pid_t>(party.pid), party.start_time);
}

std::optional<std::string> RingWatch::dead() {
  for (std::size_t i = 0; i < parties_.size(); ++i) {
    const bool there = open(parties_[i]);
    fds_[i] = {there ? parties_[i].pidfd : -1, POLLIN, 0};  // a negative descriptor is skipped
  }
  poll(fds_.data(), fds_.size(), 0);
  for (std::size_t i = 0; i < parties_.size(); ++i) {
    const Party& party = parties_[i];
    // Who has closed its end may end; it may have done so since poll() looked.
    if (party.pid == 0 || !ended(party, fds_[i].revents != 0) || has_left(party)) continue;
    return describe(party.number);
  }
  return std::nullopt;
}

std::string RingWatch::describe(int number) const {
  for (const Party& party : parties_) {
    if (party.number != number) continue;
    const std::string who = number == kWriter ? "writer" : text("reader ", number);
    if (party.pid == 0) return who + " (has not attached)";
    return text(who, " (pid ", party.pid,
                "): ", describe_state(static_cast<pid_t>(party.pid), party.start_time));
  }
  return text("reader ", number);
}

}  // namespace fvd::shm
