#include "comm/block_layout.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "comm/error.h"

namespace fvd {
namespace {

using Sizes = std::vector<std::int64_t>;
using Tensor = std::vector<std::int32_t>;  // contiguous, of some Sizes

std::size_t elements(const Sizes& sizes) {
  std::size_t product = 1;
  for (const std::int64_t size : sizes) product *= static_cast<std::size_t>(size);
  return product;
}

/// Offset of each byte of a block, in the order of its runs.
std::vector<std::size_t> offsets(const BlockLayout& layout, std::size_t peer) {
  static const std::byte memory[1 << 16]{};  // as large as any tensor here
  const ConstBlock block = layout.block(static_cast<const void*>(memory), peer);
  const auto start = static_cast<std::size_t>(block.data - memory);
  std::vector<std::size_t> result;
  for (std::size_t run = 0; run < block.runs; ++run) {
    for (std::size_t i = 0; i < block.run_bytes; ++i) {
      result.push_back(start + run * block.run_stride + i);
    }
  }
  return result;
}

/// The same by division: which bytes of a tensor belong to a peer.
std::vector<std::size_t> owned(const Sizes& sizes, std::size_t dim, std::size_t element_bytes,
                               std::size_t peers, std::size_t peer) {
  std::size_t inner = element_bytes;
  for (std::size_t d = dim + 1; d < sizes.size(); ++d) inner *= static_cast<std::size_t>(sizes[d]);
  const auto size = static_cast<std::size_t>(sizes[dim]);
  std::vector<std::size_t> result;
  for (std::size_t byte = 0; byte < elements(sizes) * element_bytes; ++byte) {
    const std::size_t index = byte / inner % size;
    if (index / (size / peers) == peer) result.push_back(byte);
  }
  return result;
}

TEST(BlockLayout, GivesEveryPeerItsPart) {
  for (const Sizes& sizes : {Sizes{12}, Sizes{12, 1}, Sizes{1, 12}, Sizes{2, 12, 5}, Sizes{24, 12},
                             Sizes{3, 2, 12, 4}, Sizes{2, 3, 1, 12}}) {
    for (std::size_t dim = 0; dim < sizes.size(); ++dim) {
      for (const std::size_t peers : {1, 2, 3, 4, 6, 12}) {
        if (sizes[dim] % static_cast<std::int64_t>(peers) != 0) continue;
        for (const std::size_t element_bytes : {1, 2, 8, 16}) {
          const BlockLayout layout = BlockLayout::split(sizes, dim, element_bytes, peers);
          EXPECT_EQ(layout.block_bytes() * peers, elements(sizes) * element_bytes);
          for (std::size_t peer = 0; peer < peers; ++peer) {
            ASSERT_EQ(offsets(layout, peer), owned(sizes, dim, element_bytes, peers, peer))
                << "dimension " << dim << " of " << testing::PrintToString(sizes) << ", peer "
                << peer << " of " << peers;
          }
        }
      }
    }
  }
}

TEST(BlockLayout, TheFirstDimensionGivesContiguousBlocks) {
  const BlockLayout layout = BlockLayout::split(Sizes{8, 3, 5}, 0, 4, 4);
  std::byte base{};
  EXPECT_TRUE(layout.block(&base, 0).contiguous());
  EXPECT_EQ(layout.block_bytes(), 2u * 3 * 5 * 4);
}

TEST(BlockLayout, EmptyTensorsHaveEmptyBlocks) {
  for (const Sizes& sizes : {Sizes{0, 4}, Sizes{2, 4, 0}, Sizes{4, 0}}) {
    for (std::size_t dim = 0; dim < sizes.size(); ++dim) {
      EXPECT_EQ(BlockLayout::split(sizes, dim, 4, 2).block_bytes(), 0u);
    }
  }
}

TEST(BlockLayout, SizesBeyond32Bits) {
  const BlockLayout layout = BlockLayout::split(Sizes{1 << 20, 8, 1 << 12}, 1, 2, 8);
  EXPECT_EQ(layout.runs, std::size_t{1} << 20);
  EXPECT_EQ(layout.block_bytes(), std::size_t{1} << 33);
}

/// All ranks in one process: block j of rank i's input becomes block i of rank j's output.
std::vector<Tensor> exchanged(const std::vector<Tensor>& in, const Sizes& in_sizes,
                              std::size_t split_dim, const Sizes& out_sizes,
                              std::size_t gather_dim) {
  const std::size_t peers = in.size();
  const BlockLayout from = BlockLayout::split(in_sizes, split_dim, 4, peers);
  const BlockLayout to = BlockLayout::split(out_sizes, gather_dim, 4, peers);
  std::vector<Tensor> out(peers, Tensor(elements(out_sizes)));
  for (std::size_t i = 0; i < peers; ++i) {
    for (std::size_t j = 0; j < peers; ++j) {
      const std::vector<std::size_t> sources = offsets(from, j);
      const std::vector<std::size_t> targets = offsets(to, i);
      EXPECT_EQ(sources.size(), targets.size());
      for (std::size_t k = 0; k < sources.size(); k += 4) {
        out[j][targets[k] / 4] = in[i][sources[k] / 4];
      }
    }
  }
  return out;
}

struct Attention {
  std::int64_t batch, sequence, heads, features, ranks;
};

/// The part of a whole [batch, sequence, heads, features] of which each element is its own index.
Tensor part(const Attention& a, std::int64_t s0, std::int64_t s1, std::int64_t h0,
            std::int64_t h1) {
  Tensor result;
  for (std::int64_t b = 0; b < a.batch; ++b) {
    for (std::int64_t s = s0; s < s1; ++s) {
      for (std::int64_t h = h0; h < h1; ++h) {
        for (std::int64_t d = 0; d < a.features; ++d) {
          result.push_back(
              static_cast<std::int32_t>(((b * a.sequence + s) * a.heads + h) * a.features + d));
        }
      }
    }
  }
  return result;
}

TEST(BlockLayout, ExchangesSequenceForHeadsAndBack) {
  for (const Attention& a :
       {Attention{1, 4, 2, 3, 2}, Attention{2, 6, 6, 4, 3}, Attention{3, 8, 4, 1, 4},
        Attention{2, 5, 10, 2, 5}, Attention{2, 7, 3, 5, 1}}) {
    const std::int64_t s = a.sequence / a.ranks;
    const std::int64_t h = a.heads / a.ranks;
    const Sizes by_sequence{a.batch, s, a.heads, a.features};
    const Sizes by_heads{a.batch, a.sequence, h, a.features};
    std::vector<Tensor> sequence_parts;
    std::vector<Tensor> head_parts;
    for (std::int64_t r = 0; r < a.ranks; ++r) {
      sequence_parts.push_back(part(a, r * s, (r + 1) * s, 0, a.heads));
      head_parts.push_back(part(a, 0, a.sequence, r * h, (r + 1) * h));
    }
    EXPECT_EQ(exchanged(sequence_parts, by_sequence, 2, by_heads, 1), head_parts);
    EXPECT_EQ(exchanged(head_parts, by_heads, 1, by_sequence, 2), sequence_parts);
  }
}

std::string message(const Sizes& sizes, std::size_t dim, std::size_t peers) {
  try {
    BlockLayout::split(sizes, dim, 4, peers);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Kind::kInvalidArgument);
    return error.what();
  }
  return "nothing was thrown";
}

TEST(BlockLayout, RefusesWhatCannotBeSplit) {
  EXPECT_EQ(message({2, 3}, 2, 2), "dimension 2 of a tensor with 2 dimensions");
  EXPECT_EQ(message({}, 0, 2), "dimension 0 of a tensor with 0 dimensions");
  EXPECT_EQ(message({2, 3}, 1, 0), "a tensor cannot be split over 0 ranks");
  EXPECT_EQ(message({2, 3}, 1, 2),
            "dimension 1 has size 3, not divisible by the 2 ranks of the group");
}

TEST(Block, KnowsItsLengthAndForm) {
  std::byte memory[32];
  const Block strided{memory, 3, 4, 8};
  EXPECT_EQ(strided.bytes(), 12u);
  EXPECT_FALSE(strided.contiguous());
  EXPECT_TRUE((Block{memory, 3, 4, 4}).contiguous());
  EXPECT_TRUE((Block{memory, 1, 4, 99}).contiguous());
  EXPECT_EQ(Block{}.bytes(), 0u);
  EXPECT_EQ(contiguous_block(memory, 7).bytes(), 7u);
  EXPECT_EQ(contiguous_block(static_cast<const void*>(memory), 7).data, memory);
}

}  // namespace
}  // namespace fvd
