// The exchange of sequence parallelism, of any number of tensors in one call of the transport.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/op_call.h"

namespace fvd::ops {

/// Of one tensor: how the ranks share its two dimensions, one size per rank.
struct Splits {
  std::vector<std::int64_t> scatter;
  std::vector<std::int64_t> gather;
};

/// One tensor on its way.
struct ExchangeItem {
  c10d_::TensorView in;
  c10d_::TensorView out;
  Splits splits;
};

/// Of what `x` becomes on this rank.
std::vector<std::int64_t> result_sizes(const OpCall& call, const at::Tensor& x,
                                       std::size_t scatter_dim, std::size_t gather_dim,
                                       const Splits& splits);

/// For OpCall::run: what all ranks must mean alike.
std::size_t layout_of(at::TensorList xs, std::size_t scatter_dim, std::size_t gather_dim,
                      const std::vector<Splits>& splits);

/// Rank r gets  y[.., i, ..] = x_j[.., i - (where j's part begins), ..]  along `gather_dim`, for i
/// in j's part, of that r-th part of each x_j along `scatter_dim`. Both layouts are read and
/// written where they lie: no transpose before or after.
///
/// `splits` are those of each of `xs`; x.size(gather_dim) is this rank's gather size.
/// @throws ValueError, TypeError, NotImplementedError for tensors that cannot be sent
std::vector<at::Tensor> exchange(const OpCall& call, at::TensorList xs, std::size_t scatter_dim,
                                 std::size_t gather_dim, const std::vector<Splits>& splits);

/// The same of one contiguous tensor in equal parts: what a layer does many times a second, with
/// no list to be made. Other ranks may call the other one meanwhile.
at::Tensor exchange_evenly(const OpCall& call, const at::Tensor& x, std::int64_t scatter_dim,
                           std::int64_t gather_dim);

/// @throws ValueError unless `x` has 4 dimensions and the other two are different ones of them
void check_dims(const c10d_::Site& site, const at::Tensor& x, std::int64_t scatter_dim,
                std::int64_t gather_dim);

}  // namespace fvd::ops
