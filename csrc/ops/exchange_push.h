// The exchange of tensors on GPUs that reach each other's memory: every rank writes its parts
// straight into the results of all. One kernel for all tensors and all ranks, no staging, any
// strides; 2 n bytes of device memory are read or written for tensors of n bytes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "ops/exchange.h"

namespace fvd::ops {

/// Enqueues the exchange on the call's stream, if all ranks can do it so. Else nothing is enqueued
/// on any rank, and it returns why.
/// `gather_dim`, `scatter_dim`: as exchange().
std::optional<std::string> exchange_by_push(Communicator& communicator, const Call& call,
                                            const std::vector<ExchangeItem>& items,
                                            std::size_t scatter_dim, std::size_t gather_dim);

}  // namespace fvd::ops
