// The algorithms behind all_reduce, reduce and reduce_scatter. Each element is combined by one
// rank, in the order of the ranks, and copied by the others: the same bits everywhere.
#pragma once

#include <cstddef>
#include <span>

#include "comm/block_layout.h"
#include "shm/group.h"

namespace fvd::shm {

/// Between Group::begin and Group::finish. `root` >= 0: only the root's `out` is written (reduce).
/// `in` and `out` may be the same.
void run_all_reduce(Group& group, const void* in, void* out, std::size_t count, DataType type,
                    ReduceOp op, int root);

/// `in` has one block per rank, all of equal bytes; `out` holds one block.
void run_reduce_scatter(Group& group, std::span<const ConstBlock> in, void* out, DataType type,
                        ReduceOp op);

}  // namespace fvd::shm
