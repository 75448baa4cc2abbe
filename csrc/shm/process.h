// What the kernel tells about a process: its death, its state, whether two processes share a host.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

namespace fvd::shm {

/// A descriptor that becomes readable when the process ends, even while it is an unreaped zombie
/// and even if children of it live on. -1 where the kernel has none (before Linux 5.3) or the
/// process is gone.
int open_pidfd(pid_t pid) noexcept;

/// When the process was started, in clock ticks since boot: tells a process from a later one with
/// the same pid. 0 if there is no such process.
std::uint64_t start_time(pid_t pid);

/// Whether the process has ended. For kernels without pidfd, and to tell a reused pid.
bool has_ended(pid_t pid, std::uint64_t start_time);

/// "running", "sleeping", "stopped by a signal", "ended by signal 9 (Killed)", ... with the
/// kernel's letter.
std::string describe_state(pid_t pid, std::uint64_t start_time);

/// Equal on two processes exactly if one kernel runs both.
std::string boot_id();

/// Identity of this process's PID namespace: pids mean the same inside one only.
std::uint64_t pid_namespace();

}  // namespace fvd::shm
