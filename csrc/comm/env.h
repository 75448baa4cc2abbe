// Every FASTVIDEO_DIST_* variable the C++ side knows, read once by whoever composes the process.
// Each has an equal option in comm/options.h; docs/environment.md lists them and a test compares
// the two.
#pragma once

#include "comm/log.h"
#include "comm/options.h"

namespace fvd {

struct Environment {
  DomainOptions domain;
  NcclOptions nccl;
  LogLevel log_level = LogLevel::kWarning;
};

/// @throws Error(kInvalidArgument) naming the variable, its value and what is allowed.
///
/// FASTVIDEO_DIST_LOG               error, warning, info or debug
/// FASTVIDEO_DIST_SLOTS             groups alive at once in this process, 1 to 65536
/// FASTVIDEO_DIST_STAGING_BYTES     shared memory per group in use, 131072 or more
/// FASTVIDEO_DIST_ONE_SHOT_BYTES    largest message that takes a single phase
/// FASTVIDEO_DIST_SPIN_US           microseconds of busy waiting before yielding
/// FASTVIDEO_DIST_SOCKET_DIRECTORY  where the handshake's private directory is made; without it
///                                  XDG_RUNTIME_DIR, TMPDIR, /tmp
/// FASTVIDEO_DIST_NCCL_LIBRARY      absolute path of the libnccl.so.2 to load
/// FASTVIDEO_DIST_CUDA_LIBRARY      absolute path of the libcudart.so.12 or 13 to load
/// FASTVIDEO_DIST_NCCL_CHECK        beside or before: when CUDA calls are compared between ranks
/// FASTVIDEO_DIST_PUSH              1: exchanges on GPUs write into the peers' tensors; 0: over
/// NCCL
Environment read_environment();

}  // namespace fvd
