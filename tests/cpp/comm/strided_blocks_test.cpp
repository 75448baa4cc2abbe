#include "comm/strided_blocks.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace fvd {
namespace {

using Numbers = std::vector<std::int64_t>;
constexpr std::size_t kElement = 4;

std::int64_t product(const Numbers& sizes) {
  std::int64_t result = 1;
  for (const std::int64_t size : sizes) result *= size;
  return result;
}

Numbers contiguous_strides(const Numbers& sizes) {
  Numbers strides(sizes.size(), 1);
  for (std::size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
  return strides;
}

/// Element offsets of a part, one index after the other.
Numbers wanted(const Numbers& sizes, const Numbers& strides, std::size_t dim, std::int64_t begin,
               std::int64_t end) {
  Numbers result;
  for (std::int64_t flat = 0; flat < product(sizes); ++flat) {
    std::int64_t rest = flat, offset = 0, at = 0;
    for (std::size_t d = sizes.size(); d-- > 0;) {
      const std::int64_t index = rest % sizes[d];
      rest /= sizes[d];
      offset += index * strides[d];
      if (d == dim) at = index;
    }
    if (at >= begin && at < end) result.push_back(offset);
  }
  return result;
}

/// The same as the blocks say it. Nothing is read, so any address does.
Numbers offsets(const std::vector<ConstBlock>& blocks, const void* start) {
  Numbers result;
  for (const ConstBlock& block : blocks) {
    for (std::size_t run = 0; run < block.runs; ++run) {
      const auto* at = block.data + run * block.run_stride;
      for (std::size_t byte = 0; byte < block.run_bytes; byte += kElement) {
        result.push_back((at + byte - static_cast<const std::byte*>(start)) /
                         static_cast<std::int64_t>(kElement));
      }
    }
  }
  return result;
}

struct Layout {
  std::string name;
  Numbers sizes;
  Numbers strides;
  bool in_blocks;  // whether that is worth it
};

const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      {"contiguous", {2, 6, 4, 32}, contiguous_strides({2, 6, 4, 32}), true},
      {"heads first", {2, 6, 4, 32}, {4 * 6 * 32, 32, 6 * 32, 1}, true},
      {"one of three", {2, 6, 4, 32}, {6 * 3 * 128, 3 * 128, 32, 1}, true},
      {"a longer sequence", {2, 6, 4, 32}, {9 * 128, 128, 32, 1}, true},
      {"every second element", {2, 6, 4, 32}, {6 * 4 * 64, 4 * 64, 64, 2}, false},
      {"short runs", {2, 6, 4, 4}, {4 * 6 * 4, 4, 6 * 4, 1}, false},
      {"expanded", {2, 6, 4, 32}, {0, 4 * 32, 32, 1}, false},
      {"one dimension", {12}, {1}, true},
      {"sizes of one", {1, 6, 1, 32}, {7, 32, 5, 1}, true},
  };
  return all;
}

TEST(StridedBlocks, GiveEveryElementOfThePartInOrder) {
  for (const Layout& layout : layouts()) {
    const bool contiguous = layout.strides == contiguous_strides(layout.sizes);
    static const std::byte memory[1 << 17]{};
    const StridedArray array{memory, layout.sizes, layout.strides, kElement};
    for (std::size_t dim = 0; dim < layout.sizes.size(); ++dim) {
      for (std::int64_t begin = 0; begin <= layout.sizes[dim]; ++begin) {
        for (std::int64_t end = begin; end <= layout.sizes[dim]; ++end) {
          SCOPED_TRACE(layout.name + ", dimension " + std::to_string(dim) + " from " +
                       std::to_string(begin) + " to " + std::to_string(end));
          std::vector<ConstBlock> blocks;
          if (!append_blocks(array, dim, begin, end, contiguous, blocks)) {
            EXPECT_TRUE(blocks.empty());
            EXPECT_FALSE(contiguous);
            continue;
          }
          EXPECT_EQ(offsets(blocks, memory), wanted(layout.sizes, layout.strides, dim, begin, end));
          if (contiguous) {
            EXPECT_LE(blocks.size(), 1u);
          }
        }
      }
    }
  }
}

TEST(StridedBlocks, RefuseWhatACopyDoesFaster) {
  for (const Layout& layout : layouts()) {
    std::vector<ConstBlock> blocks;
    const StridedArray array{nullptr, layout.sizes, layout.strides, kElement};
    const std::int64_t all = layout.sizes[0];
    EXPECT_EQ(append_blocks(array, 0, 0, all, false, blocks), layout.in_blocks) << layout.name;
  }
}

TEST(StridedBlocks, LeaveWhatTheyFoundInTheList) {
  const Numbers sizes{4, 64}, strides{64, 1};
  const float memory[256]{};
  std::vector<ConstBlock> blocks(1);
  EXPECT_TRUE(append_blocks({memory, sizes, strides, kElement}, 0, 1, 3, true, blocks));
  ASSERT_EQ(blocks.size(), 2u);
  EXPECT_EQ(blocks[0].data, nullptr);
  EXPECT_EQ(blocks[1].bytes(), 2 * 64 * kElement);
}

}  // namespace
}  // namespace fvd
