// An NCCL that really moves data, between threads or processes of one host. Calls are enqueued on
// the streams of fake_cuda.h; a send is done when it was received, a group is one piece of work.
// Reductions are in the order of the ranks.
#pragma once

#include <string>
#include <vector>

#include "nccl/fake_post.h"
#include "nccl/nccl_api.h"

namespace fvd::test {

/// The table. Folders of communicators are made in `folder`, which must be empty and outlive them.
nccl::NcclApi fake_nccl(const std::string& folder, Between between = Between::kThreads);

/// What the fake does beside its duty. Of this process; set before the calls it is about.
struct FakeNcclFaults {
  int version = 22907;
  int init_polls = 3;       // how often a new communicator says "in progress"
  int group_polls = 0;      // how often one does after a group
  bool init_hangs = false;  // it never gets ready
  bool calls_hang = false;  // no collective ever ends on the device, but by an abort
  bool finalize_hangs = false;
  nccl::Result next_call = nccl::Result::kSuccess;    // of the next collective
  nccl::Result async_error = nccl::Result::kSuccess;  // of every communicator,
  int async_error_size = 0;                           // or only of those of so many ranks
  int abort_ms = 0;                                   // how long an abort takes
};
void set_faults(const FakeNcclFaults& faults);

/// "ncclGroupStart", "ncclSend to 1", ... of this process, in order; forgotten by the call.
std::vector<std::string> take_log();

/// ncclGroupStart without its ncclGroupEnd, on any thread.
int open_groups();

/// Communicators neither destroyed nor aborted.
int live_communicators();

}  // namespace fvd::test
