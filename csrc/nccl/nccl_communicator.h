// The CUDA transport: NCCL behind the project's Communicator, for memory of one GPU per rank.
//
// What differs from the contract in comm/communicator.h, because a GPU works on its own:
//   Order:   a call is enqueued on `Call::stream` and returns; "done" is said of the stream. Only
//            barrier() waits on the host, and whatever connects ranks for the first time.
//   Waiting: Transfer::wait() lets `Call::stream` wait; the host waits until the peer has come.
//            After it a transfer may be dropped, as one that is done.
//   Values:  equal on all ranks; the order of a sum is NCCL's.
//   Errors:  found while a call runs on the device, by a thread that watches: check() throws them,
//            and every later call kAborted. With NcclCheck::kBefore disagreements are found before
//            anything is sent, as the contract says.
//   Sends:   match in order for each pair and direction; a tag is compared (with kBefore) and not
//            looked for; kAnySource is kUnsupported.
//   Push:    waits on the host until all ranks have come, to agree; see nccl/push.h.
//   Capture: calls may be captured in a CUDA graph, once the ranks have met; nobody watches a
//            captured call, and it is not compared.
#pragma once

#include <functional>
#include <memory>

#include "comm/communicator.h"
#include "comm/options.h"
#include "comm/store.h"
#include "nccl/block_kernels.h"
#include "nccl/cuda_api.h"
#include "nccl/nccl_api.h"

namespace fvd::nccl {

/// Both tables, and the kernels if there are some.
struct Libraries {
  NcclApi nccl;
  CudaApi cuda;
  BlockKernels kernels;
};

/// Finds both libraries. @throws Error(kUnsupported)
Libraries load_libraries(const NcclOptions& options);

struct NcclGroupOptions {
  GroupOptions group;
  int device = 0;  // of this rank
  NcclCheck check = NcclCheck::kBeside;
  bool push = false;  // see NcclOptions
  std::chrono::milliseconds watch_interval{20};
};

/// Joins: collective over the group, and blocking. Every rank learns if one of them could not load
/// its libraries. `control` is a group of the CPU over the same ranks, of this communicator alone.
/// `store` may be asked by a thread of the communicator when the group breaks.
///
/// @throws Error(kUnsupported) no usable library on some rank; Error(kLibrary) NCCL fails, or the
///         ranks' versions differ; what `control` throws
std::unique_ptr<Communicator> make_communicator(const std::function<Libraries()>& load,
                                                std::shared_ptr<Store> store,
                                                std::unique_ptr<Communicator> control,
                                                const NcclGroupOptions& options);

}  // namespace fvd::nccl
