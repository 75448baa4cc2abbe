// What decides in the kernel in which ranks wait for each other.
#include "cuda/rank_barrier.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "cuda/fake_kernels.h"

namespace fvd::cuda {
namespace {

TEST(Patience, EndsWithItsTimeOrAnAbort) {
  const Patience patience{1000, 500};
  EXPECT_TRUE(patience.lasts(1000, false));
  EXPECT_TRUE(patience.lasts(1499, false));
  EXPECT_FALSE(patience.lasts(1500, false));
  EXPECT_FALSE(patience.lasts(1001, true));
}

/// Ranks as threads, each with the words of all in its memory.
class Ranks {
 public:
  explicit Ranks(std::uint32_t count) : words_(count), given_up_(count), abort_(count) {
    for (auto& words : words_) words.resize(count * kStep / 8);
    reports_.resize(count, std::vector<std::uint64_t>(2));
  }
  Barrier barrier(std::uint32_t rank, std::uint64_t number, std::uint64_t limit) {
    Barrier barrier{};
    barrier.ranks = static_cast<std::uint32_t>(words_.size());
    for (std::uint32_t peer = 0; peer < barrier.ranks; ++peer)
      barrier.tell[peer] = &words_[peer][rank * kStep / 8];
    barrier.heard = reinterpret_cast<const std::byte*>(words_[rank].data());
    barrier.step = kStep;
    barrier.number = number;
    barrier.limit = limit;
    barrier.rank = rank;
    barrier.given_up = &given_up_[rank];
    barrier.abort = &abort_[rank];
    barrier.report = reports_[rank].data();
    return barrier;
  }
  std::uint32_t given_up(std::uint32_t rank) const { return given_up_[rank]; }
  const std::vector<std::uint64_t>& report(std::uint32_t rank) const { return reports_[rank]; }
  std::uint64_t told(std::uint32_t rank, std::uint32_t peer) const {
    return words_[peer][rank * kStep / 8];
  }
  void abort(std::uint32_t rank) { abort_[rank] = 1; }

 private:
  static constexpr std::size_t kStep = 32;
  std::vector<std::vector<std::uint64_t>> words_;
  std::vector<std::uint32_t> given_up_, abort_;
  std::vector<std::vector<std::uint64_t>> reports_;
};

constexpr std::uint64_t kMinute = 60'000'000'000, kMoment = 1'000'000;

TEST(RankBarrier, NobodyLeavesBeforeAllHaveCome) {
  constexpr std::uint32_t kRanks = 4;
  Ranks ranks(kRanks);
  std::vector<int> shared(kRanks, 0);
  std::vector<std::thread> threads;
  for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      std::uint64_t number = 0;
      for (int round = 1; round <= 20; ++round) {
        shared[rank] = round;
        test::wait_for_ranks_on_host(ranks.barrier(rank, ++number, kMinute));
        for (const int value : shared) EXPECT_EQ(value, round);
        test::wait_for_ranks_on_host(ranks.barrier(rank, ++number, kMinute));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (std::uint32_t rank = 0; rank < kRanks; ++rank) EXPECT_EQ(ranks.given_up(rank), 0u);
}

TEST(RankBarrier, WhoGivesUpSaysWhoWasMissingAndComesToNoOther) {
  Ranks ranks(3);
  test::wait_for_ranks_on_host(ranks.barrier(1, 7, 0));
  test::wait_for_ranks_on_host(ranks.barrier(0, 7, kMoment));
  EXPECT_EQ(ranks.given_up(0), 1u);
  EXPECT_EQ(ranks.report(0), (std::vector<std::uint64_t>{7, bit_of(2)}));
  test::wait_for_ranks_on_host(ranks.barrier(0, 8, kMoment));
  EXPECT_EQ(ranks.told(0, 1), 7u);
}

TEST(RankBarrier, AfterAnAbortNobodyIsTold) {
  for (const std::uint32_t begins : {0u, 1u}) {
    Ranks ranks(2);
    test::wait_for_ranks_on_host(ranks.barrier(1, 1, 0));  // rank 1 has come
    ranks.abort(0);
    Barrier barrier = ranks.barrier(0, 1, kMinute);
    barrier.begins = begins;
    test::wait_for_ranks_on_host(barrier);
    EXPECT_EQ(ranks.given_up(0), 1u);
    EXPECT_EQ(ranks.report(0), (std::vector<std::uint64_t>{1, bit_of(0)}));
    EXPECT_EQ(ranks.told(0, 1), 0u);
  }
}

TEST(RankBarrier, WhoGivesUpReportsAtOnceAndLingers) {
  Ranks ranks(2);
  Barrier barrier = ranks.barrier(0, 1, kMoment);
  barrier.linger = 300 * kMoment;
  const auto begin = std::chrono::steady_clock::now();
  std::atomic<bool> over{false};
  std::thread waiting([&] {
    test::wait_for_ranks_on_host(barrier);
    over = true;
  });
  while (__atomic_load_n(&ranks.report(0)[0], __ATOMIC_ACQUIRE) == 0 && !over)
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
  EXPECT_FALSE(over);
  waiting.join();
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds{300});
}

}  // namespace
}  // namespace fvd::cuda
