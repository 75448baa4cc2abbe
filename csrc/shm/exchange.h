// The one mover behind broadcast, all_gather, gather, scatter and all_to_all: everybody lays its
// blocks into its own staging area, everybody copies what it is owed out of the others'. Two copies
// per byte, none before or after: blocks are read and written in their final layouts.
#pragma once

#include <cstddef>
#include <span>

#include "comm/block_layout.h"
#include "shm/group.h"

namespace fvd::shm {

/// One rank's part of an exchange.
struct Exchange {
  /// What this rank sends: blocks for each rank, or once for all of them (`same_for_all`), or
  /// none.
  std::span<const ConstBlocks> send;
  /// What it receives: blocks for each sending rank, own ones included; or none.
  std::span<const Blocks> receive;
  bool same_for_all = false;
  int sender = -1;    // the only rank that sends; -1: all do
  int receiver = -1;  // the only rank that receives; -1: all do
  /// Bytes of the most that any rank sends to one; equal on all ranks.
  std::size_t largest = 0;
};

/// Between Group::begin and Group::finish. Announces, checks that all ranks agree, and moves.
void run_exchange(Group& group, const Exchange& exchange);

/// As run_exchange for blocks of any lengths; compares every pair's before anything moves.
/// `element_bytes` is for the message. @throws Error(kMismatch)
void run_uneven_exchange(Group& group, Exchange exchange, std::size_t element_bytes);

}  // namespace fvd::shm
