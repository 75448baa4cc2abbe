#include "comm/block_layout.h"

#include "comm/error.h"

namespace fvd {

BlockLayout BlockLayout::split(std::span<const std::int64_t> sizes, std::size_t dim,
                               std::size_t element_bytes, std::size_t peers) {
  FVD_CHECK(dim < sizes.size(), kInvalidArgument, "dimension ", dim, " of a tensor with ",
            sizes.size(), " dimensions");
  FVD_CHECK(peers > 0, kInvalidArgument, "a tensor cannot be split over 0 ranks");
  for (std::int64_t extent : sizes) {
    FVD_CHECK(extent >= 0, kInvalidArgument, "a tensor with a dimension of size ", extent);
  }
  const auto size = static_cast<std::size_t>(sizes[dim]);
  FVD_CHECK(size % peers == 0, kInvalidArgument, "dimension ", dim, " has size ", size,
            ", not divisible by the ", peers, " ranks of the group");
  std::size_t before = 1;
  std::size_t after = element_bytes;
  for (std::size_t d = 0; d < dim; ++d) before *= static_cast<std::size_t>(sizes[d]);
  for (std::size_t d = dim + 1; d < sizes.size(); ++d) after *= static_cast<std::size_t>(sizes[d]);
  const std::size_t run_bytes = size / peers * after;
  return {before, run_bytes, size * after, run_bytes};
}

}  // namespace fvd
