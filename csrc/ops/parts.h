// Parts of tensors along a dimension, as blocks a transport can read and write in place.
#pragma once

#include <cstdint>
#include <vector>

#include "comm/block_layout.h"
#include "ops/op_call.h"

namespace fvd::ops {

/// The memory of `x`, to be cut along `dim` into parts of these `sizes`: where it is if its strides
/// allow for blocks, else a contiguous copy.
c10d_::TensorView view_of_parts(const OpCall& call, const at::Tensor& x, std::size_t dim,
                                const std::vector<std::int64_t>& sizes, const char* what,
                                int index = -1);

/// What of such a view has an index along `dim` in [begin, end).
void append_part(const c10d_::TensorView& x, std::size_t dim, std::int64_t begin, std::int64_t end,
                 std::vector<ConstBlock>& blocks);

/// The same of a result: contiguous, so one block.
Block part_of_result(const c10d_::TensorView& y, std::size_t dim, std::int64_t begin,
                     std::int64_t end);

/// Of a contiguous array, in elements. `sizes` is not empty.
std::vector<std::int64_t> contiguous_strides(const std::vector<std::int64_t>& sizes);

/// Blocks for each rank: add those of rank 0, end(), those of rank 1, end(), and so on.
template <typename B>
class BlockLists {
 public:
  std::vector<B> blocks;

  void end() { ends_.push_back(blocks.size()); }

  /// Refers to this object, which is complete by now.
  std::vector<std::span<const B>> lists() const {
    std::vector<std::span<const B>> result;
    std::size_t begin = 0;
    for (const std::size_t end : ends_) {
      result.push_back(std::span<const B>(blocks).subspan(begin, end - begin));
      begin = end;
    }
    return result;
  }

 private:
  std::vector<std::size_t> ends_;
};

}  // namespace fvd::ops
