// A part of a strided tensor as blocks, so that it can be sent from where it lies. Pure arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "comm/block_layout.h"

namespace fvd {

/// Sizes and strides in elements, outermost dimension first. Refers to all of it.
struct StridedArray {
  const void* data = nullptr;
  std::span<const std::int64_t> sizes;
  std::span<const std::int64_t> strides;
  std::size_t element_bytes = 1;
};

/// Appends to `blocks` the elements whose index along dimension `dim` is in [begin, end), in the
/// order of a contiguous tensor. A contiguous one gives a single block, and nothing is appended if
/// there are no such elements.
///
/// False, and nothing was appended, if the runs are so short or the blocks so many that a
/// contiguous copy is the faster way (never for a contiguous tensor, which says so by
/// `contiguous`).
bool append_blocks(const StridedArray& array, std::size_t dim, std::int64_t begin, std::int64_t end,
                   bool contiguous, std::vector<ConstBlock>& blocks);

}  // namespace fvd
