#include "comm/strided_blocks.h"

namespace fvd {
namespace {

// What a copy of its own costs is saved as long as a run is worth a jump and a block its 20 ns.
constexpr std::size_t kLeastRunBytes = 32;
constexpr std::size_t kLeastBlockBytes = 512;

struct Extent {
  std::size_t size;
  std::size_t stride;  // in bytes
};

/// The dimensions of a part, outermost first, without those of size 1, and with neighbours that
/// lie end to end made one. Empty for a single element. False if there are no elements.
bool collapse(const StridedArray& array, std::size_t dim, std::int64_t part,
              std::vector<Extent>& extents) {
  for (std::size_t d = 0; d < array.sizes.size(); ++d) {
    const std::int64_t size = d == dim ? part : array.sizes[d];
    if (size <= 0) return false;
    if (size == 1) continue;
    const Extent inner{static_cast<std::size_t>(size),
                       static_cast<std::size_t>(array.strides[d]) * array.element_bytes};
    if (!extents.empty() && extents.back().stride == inner.size * inner.stride) {
      extents.back() = {extents.back().size * inner.size, inner.stride};
    } else {
      extents.push_back(inner);
    }
  }
  return true;
}

/// Steps through all indices of `outer`, the last fastest; `body` gets the offset of each.
template <typename Body>
void for_offsets(std::span<const Extent> outer, std::size_t offset, Body& body) {
  if (outer.empty()) return body(offset);
  for (std::size_t i = 0; i < outer[0].size; ++i) {
    for_offsets(outer.subspan(1), offset + i * outer[0].stride, body);
  }
}

}  // namespace

bool append_blocks(const StridedArray& array, std::size_t dim, std::int64_t begin, std::int64_t end,
                   bool contiguous, std::vector<ConstBlock>& blocks) {
  std::vector<Extent> extents;
  extents.reserve(array.sizes.size());
  if (!collapse(array, dim, end - begin, extents)) return true;
  const auto* start = static_cast<const std::byte*>(array.data) +
                      static_cast<std::size_t>(begin * array.strides[dim]) * array.element_bytes;

  ConstBlock block{start, 1, array.element_bytes, array.element_bytes};
  if (!extents.empty() && extents.back().stride == array.element_bytes) {
    block.run_bytes = block.run_stride = extents.back().size * array.element_bytes;
    extents.pop_back();
  }
  if (!extents.empty()) {
    block.runs = extents.back().size;
    block.run_stride = extents.back().stride;
    extents.pop_back();
  }
  if (!contiguous) {
    // Runs that overlap (a stride of 0: an expanded tensor) are no block.
    if (block.runs > 1 && block.run_stride < block.run_bytes) return false;
    if (block.runs > 1 && block.run_bytes < kLeastRunBytes) return false;
    if (!extents.empty() && block.bytes() < kLeastBlockBytes) return false;
  }

  auto append = [&](std::size_t offset) {
    block.data = start + offset;
    blocks.push_back(block);
  };
  for_offsets(extents, 0, append);
  return true;
}

}  // namespace fvd
