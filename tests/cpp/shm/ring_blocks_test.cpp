// Memory that is taken again, and parts that arrive in memory of the reader's caller.
#include "shm/ring_blocks.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>

#include "support/ring_world.h"

namespace fvd::shm {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

TEST(RingBlocks, WhatNobodyHoldsIsTakenAgain) {
  const auto blocks = RingBlocks::create();
  auto first = blocks->take(kMiB);
  const auto* address = first.get();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(address) % 64, 0U);
  EXPECT_NE(blocks->take(kMiB).get(), address);
  const auto second_user = first;
  first.reset();
  EXPECT_NE(blocks->take(kMiB).get(), address);
  EXPECT_EQ(second_user.get(), address);
}

TEST(RingBlocks, TheLastGivenBackComesFirstIfItFits) {
  const auto blocks = RingBlocks::create();
  auto small = blocks->take(kMiB);
  auto large = blocks->take(8 * kMiB);
  const auto* small_address = small.get();
  const auto* large_address = large.get();
  small.reset();
  large.reset();
  EXPECT_EQ(blocks->take(kMiB - 5).get(), small_address);  // not the large one, for a small part
  EXPECT_EQ(blocks->take(7 * kMiB).get(), large_address);
  EXPECT_EQ(blocks->take(0), nullptr);
}

TEST(RingBlocks, ABlockOutlivesThem) {
  auto blocks = RingBlocks::create();
  const auto kept = blocks->take(kMiB);
  const auto many = blocks->take(2 * RingBlocks::kMostKeptBytes);
  blocks.reset();
  std::memset(kept.get(), 1, kMiB);
}

TEST(RingBlocks, ManyThreadsAtOnce) {
  const auto blocks = RingBlocks::create();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&blocks, t] {
      for (std::uint64_t i = 1; i < 300; ++i) {
        const std::uint64_t bytes = i % 7 * 50000 + 1;
        const auto block = blocks->take(bytes);
        block.get()[0] = static_cast<std::byte>(t);
        block.get()[bytes - 1] = static_cast<std::byte>(t);
        ASSERT_EQ(block.get()[0], static_cast<std::byte>(t));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Ring, MarkedPartsArriveInMemoryOfTheCaller) {
  test::Ring ring(1, 8);
  const test::Message sent = test::message(1, {10, 500, 0, 300, 0});
  std::vector<std::span<const std::byte>> spans;
  for (const std::string& part : sent) spans.push_back(std::as_bytes(std::span(part)));
  for (const bool wanted : {true, false}) {
    ring.writer.write(spans, test::in_time(), {false, true, true, false, false});
    std::vector<std::size_t> asked;
    std::vector<std::byte> memory(500);
    const RingAllocate allocate = [&](std::size_t bytes) {
      asked.push_back(bytes);
      return std::shared_ptr<std::byte>(memory.data(), [](std::byte*) {});
    };
    const auto parts = ring.readers[0]->read(test::in_time(), wanted ? allocate : nullptr);
    ASSERT_EQ(parts.size(), sent.size());
    for (std::size_t i = 0; i < sent.size(); ++i) {
      ASSERT_EQ(parts[i].bytes, sent[i].size());
      EXPECT_TRUE(sent[i].empty() ||
                  std::memcmp(parts[i].data.get(), sent[i].data(), sent[i].size()) == 0);
    }
    EXPECT_EQ(asked, wanted ? std::vector<std::size_t>{500} : std::vector<std::size_t>{});
    EXPECT_EQ(parts[1].data.get() == memory.data(), wanted);
  }
}

}  // namespace
}  // namespace fvd::shm
