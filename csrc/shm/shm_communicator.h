// Communicator over shared memory: CPU tensors, all ranks on one host.
#pragma once

#include <memory>

#include "comm/communicator.h"
#include "comm/options.h"
#include "comm/store.h"

namespace fvd::shm {

class Domain;

/// The domain of this process, to be made once and handed to every group. See domain.h.
/// @throws Error(kSystem) if the memory cannot be reserved; the message carries the numbers.
std::shared_ptr<Domain> make_domain(const DomainOptions& options);

/// Joins a group. Collective: every rank of the group calls it with the same `store`, `size` and
/// name. The store is used during the call only.
/// @throws Error(kTimeout) naming the ranks that did not come, kUnsupported if ranks are on
/// different
///         hosts, kMismatch if they disagree on the group, kPeerLost, kSystem.
std::unique_ptr<Communicator> make_communicator(std::shared_ptr<Domain> domain, Store& store,
                                                int rank, int size, const GroupOptions& options);

}  // namespace fvd::shm
