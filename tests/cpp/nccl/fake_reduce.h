// What the fake NCCL computes.
#pragma once

#include <cstddef>
#include <vector>

#include "nccl/abi.h"

namespace fvd::test {

std::size_t size_of(nccl::WireType type);

/// Combines the ranks' inputs in their order, each multiplied by `factor` first.
void reduce_all(const std::vector<std::vector<char>>& in, char* out, std::size_t count,
                nccl::WireType type, nccl::WireOp op, double factor);

}  // namespace fvd::test
