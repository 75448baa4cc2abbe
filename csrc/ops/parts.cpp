#include "ops/parts.h"

#include "comm/strided_blocks.h"

namespace fvd::ops {
namespace {

bool append(const at::Tensor& memory, std::size_t dim, std::int64_t begin, std::int64_t end,
            std::vector<ConstBlock>& blocks) {
  const StridedArray array{memory.const_data_ptr(), memory.sizes(), memory.strides(),
                           static_cast<std::size_t>(memory.element_size())};
  return append_blocks(array, dim, begin, end, memory.is_contiguous(), blocks);
}

bool lies_in_blocks(const at::Tensor& memory, std::size_t dim,
                    const std::vector<std::int64_t>& sizes) {
  std::vector<ConstBlock> blocks;
  std::int64_t begin = 0;
  for (const std::int64_t size : sizes) {
    if (!append(memory, dim, begin, begin + size, blocks)) return false;
    begin += size;
  }
  return true;
}

}  // namespace

c10d_::TensorView view_of_parts(const OpCall& call, const at::Tensor& x, std::size_t dim,
                                const std::vector<std::int64_t>& sizes, const char* what,
                                int index) {
  auto view = c10d_::view(call.site(), x, c10d_::Access::kReadStrided, what, index);
  if (view.memory.is_contiguous() || lies_in_blocks(view.memory, dim, sizes)) return view;
  return call.read(x, what, index);
}

void append_part(const c10d_::TensorView& x, std::size_t dim, std::int64_t begin, std::int64_t end,
                 std::vector<ConstBlock>& blocks) {
  append(x.memory, dim, begin, end, blocks);
}

Block part_of_result(const c10d_::TensorView& y, std::size_t dim, std::int64_t begin,
                     std::int64_t end) {
  const auto sizes = y.memory.sizes();
  std::size_t before = 1;
  auto after = static_cast<std::size_t>(y.memory.element_size());
  for (std::size_t d = 0; d < dim; ++d) before *= static_cast<std::size_t>(sizes[d]);
  for (std::size_t d = dim + 1; d < sizes.size(); ++d) after *= static_cast<std::size_t>(sizes[d]);
  return {y.data + static_cast<std::size_t>(begin) * after, before,
          static_cast<std::size_t>(end - begin) * after,
          static_cast<std::size_t>(sizes[dim]) * after};
}

std::vector<std::int64_t> contiguous_strides(const std::vector<std::int64_t>& sizes) {
  std::vector<std::int64_t> strides(sizes.size(), 1);
  for (std::size_t d = sizes.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * sizes[d];
  return strides;
}

}  // namespace fvd::ops
