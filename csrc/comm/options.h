// Plain settings handed down. No room below c10d reads the environment; see comm/env.h for the
// variables of the same names.
#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace fvd {

/// Of one group.
struct GroupOptions {
  std::string name;  // for messages; each group needs a Store (or a prefix) of its own
  std::chrono::milliseconds timeout{std::chrono::minutes(30)};
  std::vector<int> global_ranks;  // global_ranks[rank in the group]; empty: the same

  // As Call::interrupt, while the group is joined; outlives that. May be null.
  const std::function<void()>* interrupt = nullptr;
};

/// Of one process: its shared-memory domain.
struct DomainOptions {
  std::size_t slots = 4096;               // groups alive at once
  std::size_t staging_bytes = 2 << 20;    // per group in use, reserved at its first large call
  std::size_t one_shot_bytes = 32 << 10;  // above it a call goes through the pipeline
  // Busy wait before yielding; not done where ranks outnumber cores.
  std::chrono::microseconds spin_us{20};
  std::string socket_directory{"/tmp"};  // for the handshake of a new pair of processes
};

/// How a call on CUDA is compared with those of the other ranks.
enum class NcclCheck {
  kBeside,  // while it runs, by the watchdogs: costs the caller nothing
  kBefore,  // before anything is sent, which waits for all ranks on the CPU
};

/// Of one process: its NCCL.
struct NcclOptions {
  std::string library;       // libnccl.so.2 to use, absolute; empty: torch's, wheel's, system's
  std::string cuda_library;  // libcudart.so.12 or 13, likewise
  std::string wheels;  // the folder with the package "nvidia" of NVIDIA's wheels; may be empty
  NcclCheck check = NcclCheck::kBeside;
  bool push = false;  // exchanges write into the peers' tensors where they can
};

}  // namespace fvd
