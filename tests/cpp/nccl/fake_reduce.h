// What the fake NCCL computes.
#pragma once

#include <cstddef>
#include <vector>

#include "nccl/abi.h"

namespace fvd::test {

std::size_t size_of(nccl::WireType type);

/// Combines the ranks' inputs in their order, each first multiplied by `factor`, a `type` in
/// memory, unless that is null.
void reduce_all(const std::vector<std::vector<char>>& in, char* out, std::size_t count,
                nccl::WireType type, nccl::WireOp op, const char* factor);

}  // namespace fvd::test
