// The index arithmetic of the kernel that copies strided memory, against plain loops.
#include "cuda/copy_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "comm/block_layout.h"
#include "cuda/fake_kernels.h"
#include "cuda/kernel_table.h"
#include "shm/copy.h"

namespace fvd::cuda {
namespace {

using Numbers = std::vector<std::int64_t>;

void run(const CopyPlan& plan) {
  for (const auto& launch : plan.launches())
    test::copy_parts_on_host(plan.parts(launch).data(), launch.count, launch.tiles);
}

/// `body(indices)` for all of an array of `sizes`.
template <typename Body>
void for_all(const Numbers& sizes, Body&& body) {
  if (std::any_of(sizes.begin(), sizes.end(), [](auto size) { return size == 0; })) return;
  Numbers at(sizes.size(), 0);
  for (;;) {
    body(at);
    std::size_t d = sizes.size();
    while (d > 0 && ++at[d - 1] == sizes[d - 1]) at[--d] = 0;
    if (d == 0) return;
  }
}

std::int64_t offset(const Numbers& at, const Numbers& strides) {
  return std::inner_product(at.begin(), at.end(), strides.begin(), std::int64_t{0});
}

/// Strides of an array whose dimensions lie in any order in memory, with gaps. `extent`: elements.
Numbers shuffled_strides(const Numbers& sizes, std::mt19937& random, std::int64_t& extent) {
  std::vector<std::size_t> order(sizes.size());
  std::iota(order.begin(), order.end(), 0);
  if (random() % 2 == 0) std::shuffle(order.begin(), order.end(), random);
  Numbers strides(sizes.size());
  extent = random() % 3 == 0 ? 2 : 1;
  for (std::size_t i = order.size(); i-- > 0;) {
    strides[order[i]] = extent;
    extent *= sizes[order[i]] + (random() % 4 == 0 ? 3 : 0);
  }
  return strides;
}

struct Case {
  Numbers sizes, from_strides, to_strides;
  std::int64_t from_extent = 1, to_extent = 1;
  std::size_t element = 1;
  std::size_t from_shift = 0, to_shift = 0;  // in elements
};

Case random_case(std::mt19937& random) {
  Case c;
  const std::size_t dims = 1 + random() % 6;
  for (std::size_t d = 0; d < dims; ++d)
    c.sizes.push_back(random() % 12 == 0 ? 0 : 1 + random() % (d + 1 == dims ? 90 : 4));
  c.element = std::size_t{1} << random() % 5;
  c.from_strides = shuffled_strides(c.sizes, random, c.from_extent);
  c.to_strides = shuffled_strides(c.sizes, random, c.to_extent);
  if (random() % 3 == 0) c.from_strides[random() % dims] = 0;  // expanded
  c.from_shift = random() % 5;
  c.to_shift = random() % 5;
  return c;
}

TEST(CopyPlan, CopiesWhatPlainLoopsCopy) {
  std::mt19937 random(7);
  for (int round = 0; round < 500; ++round) {
    const Case c = random_case(random);
    std::vector<char> from((c.from_extent + 8) * c.element + 16), to((c.to_extent + 8) * c.element);
    for (char& byte : from) byte = static_cast<char>(random());
    for (char& byte : to) byte = static_cast<char>(random());
    auto wanted = to;
    const char* begin = from.data() + c.from_shift * c.element;
    const std::size_t shift = c.to_shift * c.element;
    std::uint64_t bytes = 0;
    for_all(c.sizes, [&](const Numbers& at) {
      std::memcpy(wanted.data() + shift + offset(at, c.to_strides) * c.element,
                  begin + offset(at, c.from_strides) * c.element, c.element);
      bytes += c.element;
    });
    CopyPlan plan;
    plan.add({begin, to.data() + shift, c.sizes, c.from_strides, c.to_strides, c.element});
    run(plan);
    ASSERT_EQ(to, wanted) << "round " << round;
    ASSERT_EQ(plan.bytes(), bytes) << "round " << round;
  }
}

/// The blocks of an uneven split of several tensors, packed in one launch, are those that the CPU
/// transport's copy packs.
TEST(CopyPlan, PacksBlocksAsTheTransportOfTheCpu) {
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) {
    CopyPlan plan;
    std::vector<std::vector<char>> memory;
    std::vector<Block> blocks;
    std::size_t bytes = 0;
    for (std::size_t tensor = 0; tensor < 4; ++tensor) {
      Block block;
      block.runs = random() % 9;
      block.run_bytes = random() % 3 == 0 ? random() % 100 : 16 * (random() % 10);
      block.run_stride = block.run_bytes + (random() % 2) * (random() % 3 == 0 ? 5 : 32);
      memory.emplace_back(block.runs * block.run_stride + 64);
      for (char& byte : memory.back()) byte = static_cast<char>(random());
      block.data = reinterpret_cast<std::byte*>(memory.back().data());
      blocks.push_back(block);
      bytes += block.bytes();
    }
    std::vector<std::byte> packed(bytes), wanted(bytes);
    std::size_t at = 0;
    for (const Block& block : blocks) {
      const Numbers sizes{static_cast<std::int64_t>(block.runs),
                          static_cast<std::int64_t>(block.run_bytes)};
      const Numbers strided{static_cast<std::int64_t>(block.run_stride), 1};
      const Numbers dense{static_cast<std::int64_t>(block.run_bytes), 1};
      plan.add({block.data, packed.data() + at, sizes, strided, dense, 1});
      shm::copy(contiguous_block(wanted.data() + at, block.bytes()),
                {block.data, block.runs, block.run_bytes, block.run_stride});
      at += block.bytes();
    }
    run(plan);
    ASSERT_EQ(packed, wanted);
    ASSERT_LE(plan.launches().size(), 1u);
  }
}

/// 2 x 8 ranks of an exchange: one launch for four tensors, by 16 bytes.
TEST(CopyPlan, OneLaunchOfWideAccessesForFourTensorsOfEightRanks) {
  CopyPlan plan;
  const Numbers sizes{1, 512, 5, 128};
  const Numbers from{512 * 40 * 128, 40 * 128, 128, 1};
  const Numbers to{512 * 5 * 128, 5 * 128, 128, 1};
  for (std::uintptr_t i = 0; i < 32; ++i) {
    plan.add({reinterpret_cast<void*>((i + 1) << 30), reinterpret_cast<void*>((i + 65) << 30),
              sizes, from, to, 2});
  }
  ASSERT_EQ(plan.launches().size(), 1u);
  for (const CopyPart& part : plan.parts()) {
    EXPECT_EQ(part.unit_log2, 4);
    EXPECT_EQ(part.sizes[2], 512u);
    EXPECT_EQ(part.sizes[3], 5u * 128 * 2 / 16);
  }
}

TEST(CopyPlan, TheWidthIsWhatAllAddressesAllow) {
  const auto width = [](std::uintptr_t from, std::uintptr_t to, std::int64_t run,
                        std::int64_t stride) {
    CopyPlan plan;
    const Numbers sizes{3, run}, strided{stride, 1}, dense{run, 1};
    plan.add(
        {reinterpret_cast<void*>(from), reinterpret_cast<void*>(to), sizes, strided, dense, 1});
    return 1 << plan.parts()[0].unit_log2;
  };
  EXPECT_EQ(width(0x1000, 0x2000, 64, 128), 16);
  EXPECT_EQ(width(0x1008, 0x2000, 64, 128), 8);
  EXPECT_EQ(width(0x1000, 0x2004, 64, 128), 4);
  EXPECT_EQ(width(0x1000, 0x2000, 66, 128), 2);
  EXPECT_EQ(width(0x1000, 0x2000, 64, 129), 1);
  EXPECT_EQ(width(0x1000, 0x2000, 48, 48), 16);  // one run, in truth
}

TEST(CopyPlan, ManyPartsAreSeveralLaunches) {
  CopyPlan plan;
  const Numbers sizes{1}, strides{1};
  std::vector<char> from(600, 'x'), to(600, '.');
  for (std::size_t i = 0; i < 600; ++i) plan.add({&from[i], &to[i], sizes, strides, strides, 1});
  ASSERT_EQ(plan.launches().size(), 3u);
  run(plan);
  EXPECT_EQ(to, from);
}

TEST(CopyPlan, NothingIsNoLaunch) {
  CopyPlan plan;
  const Numbers sizes{3, 0, 2}, strides{0, 2, 1};
  plan.add({nullptr, nullptr, sizes, strides, strides, 4});
  EXPECT_TRUE(plan.empty());
  EXPECT_TRUE(plan.launches().empty());
}

/// Single units of copies far larger than any memory here, by arithmetic of 128 bits.
void check_units(const Numbers& sizes, const Numbers& from, const Numbers& to,
                 std::size_t element) {
  CopyPlan plan;
  auto* const base = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 60);
  plan.add({base, base, sizes, from, to, element});
  std::mt19937_64 random(1);
  for (const auto& launch : plan.launches()) {
    const auto parts = plan.parts(launch);
    for (int round = 0; round < 20000; ++round) {
      const auto tile = static_cast<std::uint32_t>(random() % launch.tiles);
      const CopyPart& part = parts[part_of_tile(parts.data(), launch.count, tile)];
      ASSERT_GE(tile, part.first_tile);
      const std::uint64_t first = std::uint64_t{tile - part.first_tile} * kTileUnits;
      ASSERT_LT(first, units_of(part));
      const auto ahead = static_cast<std::uint32_t>(
          random() % std::min<std::uint64_t>(kTileUnits, units_of(part) - first));
      const auto got = unit_offsets(part, TileBegin::of(part, first), ahead);
      __int128 unit = static_cast<__int128>(first) + ahead, wanted_from = 0, wanted_to = 0;
      for (int d = kPartDims - 1; d >= 0; --d) {
        wanted_from += unit % part.sizes[d] * part.from_strides[d];
        wanted_to += unit % part.sizes[d] * part.to_strides[d];
        unit /= part.sizes[d];
      }
      ASSERT_EQ(unit, 0);
      ASSERT_TRUE(got.from == wanted_from && got.to == wanted_to);
    }
  }
  const std::int64_t count =
      std::accumulate(sizes.begin(), sizes.end(), std::int64_t{1}, std::multiplies<>());
  EXPECT_EQ(plan.bytes(), static_cast<std::uint64_t>(count) * element);
}

TEST(CopyPlan, IndicesBeyond31Bits) {
  // A sequence of 3 million tokens of 40 heads: 15 billion elements.
  check_units({1, 3000000, 40, 128}, {0, 40 * 128 + 8, 128, 1}, {0, 40 * 128, 128, 1}, 2);
  // 5 billion bytes in one piece, of an odd number.
  check_units({5000000001}, {1}, {1}, 1);
  // An odd stride: units of single bytes, in a dimension too long for a part.
  check_units({3000000000, 3}, {7, 1}, {3, 1}, 1);
  // An expanded source.
  check_units({70000, 70000}, {0, 2}, {70000, 1}, 4);
}

TEST(CopyPlan, ThePartsOfALongDimensionFollowOneAnother) {
  CopyPlan plan;
  const Numbers sizes{5000000001}, strides{1};
  auto* const from = reinterpret_cast<std::byte*>(std::uintptr_t{1} << 50);
  plan.add({from, from, sizes, strides, strides, 1});
  const std::byte* next = from;
  for (const CopyPart& part : plan.parts()) {
    EXPECT_EQ(part.from, next);
    EXPECT_LE(part.sizes[3], kLongestDim);
    next += units_of(part) << part.unit_log2;
  }
  EXPECT_EQ(next, from + 5000000001);
}

TEST(Divider, DividesAllThatAKernelAsksFor) {
  std::mt19937 random(5);
  std::vector<std::uint32_t> divisors{1, 2, 3, 5, 7, 127, 128, 129, kLongestDim - 1, kLongestDim};
  for (int i = 0; i < 500; ++i) divisors.push_back(1 + random() % kLongestDim);
  for (const std::uint32_t divisor : divisors) {
    const Divider divider = Divider::of(divisor);
    std::vector<std::uint32_t> numbers{0, 1, divisor - 1, divisor, 0x7fffffff, 0x7ffffffe};
    for (int i = 0; i < 200; ++i) numbers.push_back(random() & 0x7fffffff);
    for (std::uint32_t i = 1; i < 20; ++i) {
      const std::uint64_t multiple = std::uint64_t{divisor} * (random() % 100 + i);
      if (multiple < 0x7fffffff) {
        numbers.push_back(static_cast<std::uint32_t>(multiple));
        numbers.push_back(static_cast<std::uint32_t>(multiple - 1));
      }
    }
    for (const std::uint32_t number : numbers)
      ASSERT_EQ(Divider::divide(number, divider.magic, divider.shift), number / divisor)
          << number << " / " << divisor;
  }
}

}  // namespace
}  // namespace fvd::cuda
