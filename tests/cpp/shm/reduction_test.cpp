// Sums around every size at which the transport changes its way, in place and not, and the same
// bits on all ranks. What the kernels compute is reduce_test.cpp's.
#include "shm/reduction.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "support/pattern.h"
#include "support/thread_ranks.h"

namespace fvd::shm {
namespace {

using test::demand;
using test::Ending;
using test::ThreadRanks;

/// Counts of int32 around each of `limits`, which are in bytes.
std::vector<std::size_t> counts_around(const std::vector<std::size_t>& limits) {
  std::vector<std::size_t> counts{0, 1};
  for (const std::size_t limit : limits) {
    for (const std::size_t count : {limit / 4 - 1, limit / 4, limit / 4 + 1})
      counts.push_back(count);
  }
  return counts;
}

std::int32_t element(int rank, std::size_t index) {
  return static_cast<std::int32_t>(index * 31 + static_cast<std::size_t>(rank) * 1000003);
}
std::int32_t sum(int size, std::size_t index) {
  std::int32_t total = 0;
  for (int r = 0; r < size; ++r) total += element(r, index);
  return total;
}

std::vector<std::int32_t> contribution(int rank, std::size_t first, std::size_t count) {
  std::vector<std::int32_t> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = element(rank, first + i);
  return values;
}

void demand_sum(const std::vector<std::int32_t>& got, std::size_t first, int size) {
  std::size_t right = 0;
  while (right < got.size() && got[right] == sum(size, first + right)) ++right;
  demand(right == got.size(), text("element ", right, " of ", got.size()));
}

class ReductionOfSize : public ::testing::TestWithParam<int> {
 protected:
  void in_group(const std::function<void(Communicator&)>& body) {
    ThreadRanks ranks(GetParam());
    const auto endings = ranks.run_group([&](Communicator& group) {
      body(group);
      return "";
    });
    for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
  }

  std::vector<std::size_t> all_reduce_counts() const {
    const DomainOptions options = test::small_domain();
    const auto ranks = static_cast<std::size_t>(GetParam());
    const std::size_t slice = options.staging_bytes / 2 / (ranks + 1) / kLineBytes * kLineBytes;
    return counts_around({kInlineBytes, options.one_shot_bytes, ranks * kLineBytes, slice * ranks,
                          2 * slice * ranks, 2 * slice * ranks + slice, 5 * slice * ranks + 128});
  }
};

TEST_P(ReductionOfSize, AllReduce) {
  in_group([this](Communicator& group) {
    for (const std::size_t count : all_reduce_counts()) {
      const auto in = contribution(group.rank(), 0, count);
      std::vector<std::int32_t> out(count, -1);
      group.all_reduce(in.data(), out.data(), count, DataType::kInt32, {}, {});
      demand_sum(out, 0, group.size());
      demand(in == contribution(group.rank(), 0, count), "the input is as it was");
    }
  });
}

TEST_P(ReductionOfSize, AllReduceInPlace) {
  in_group([this](Communicator& group) {
    for (const std::size_t count : all_reduce_counts()) {
      auto data = contribution(group.rank(), 0, count);
      group.all_reduce(data.data(), data.data(), count, DataType::kInt32, {}, {});
      demand_sum(data, 0, group.size());
    }
  });
}

TEST_P(ReductionOfSize, ReduceToEveryRootWritesOnlyThere) {
  in_group([this](Communicator& group) {
    for (const std::size_t count : all_reduce_counts()) {
      for (int root = 0; root < group.size(); ++root) {
        const auto in = contribution(group.rank(), 0, count);
        const bool own = group.rank() == root;
        std::vector<std::int32_t> out(own ? count : 0);
        group.reduce(in.data(), own ? out.data() : nullptr, count, DataType::kInt32, {}, root, {});
        if (own) demand_sum(out, 0, group.size());
        demand(in == contribution(group.rank(), 0, count), "the input is as it was");
      }
    }
  });
}

/// What rank `rank` contributes to all: `ranks` blocks of `count`, each in `runs` runs.
struct Blocks {
  Blocks(int rank, std::size_t ranks, std::size_t count, std::size_t runs)
      : run(count / runs), values(ranks * runs * (run + 1), -7) {
    for (std::size_t r = 0; r < ranks; ++r) {
      std::int32_t* start = values.data() + r * runs * (run + 1);
      for (std::size_t i = 0; i < count; ++i) {
        start[i / run * (run + 1) + i % run] = element(rank, r * count + i);
      }
      views.push_back({reinterpret_cast<const std::byte*>(start), runs, run * 4, (run + 1) * 4});
    }
  }
  std::size_t run;
  std::vector<std::int32_t> values;
  std::vector<ConstBlock> views;
};

TEST_P(ReductionOfSize, ReduceScatterOfStridedBlocks) {
  in_group([](Communicator& group) {
    const DomainOptions options = test::small_domain();
    const auto ranks = static_cast<std::size_t>(group.size());
    const std::size_t piece = options.staging_bytes / 2 / ranks / kLineBytes * kLineBytes;
    for (const std::size_t count :
         counts_around({std::max<std::size_t>(kInlineBytes / ranks, 8),
                        options.one_shot_bytes / ranks / kLineBytes * kLineBytes, piece, 2 * piece,
                        3 * piece + 64})) {
      for (const std::size_t runs : {1U, 2U, 3U}) {
        if (count % runs != 0) continue;
        const Blocks in(group.rank(), ranks, count, runs);
        std::vector<std::int32_t> out(count, -1);
        group.reduce_scatter(in.views, out.data(), DataType::kInt32, {}, {});
        demand_sum(out, static_cast<std::size_t>(group.rank()) * count, group.size());
      }
    }
  });
}

TEST_P(ReductionOfSize, ReduceScatterIntoTheOwnBlock) {
  in_group([](Communicator& group) {
    const auto ranks = static_cast<std::size_t>(group.size());
    for (const std::size_t count : {2U, 100U, 50000U}) {
      auto data = contribution(group.rank(), 0, ranks * count);
      std::vector<ConstBlock> in;
      for (std::size_t r = 0; r < ranks; ++r) {
        in.push_back(
            contiguous_block(static_cast<const void*>(data.data() + r * count), count * 4));
      }
      const std::size_t own = static_cast<std::size_t>(group.rank()) * count;
      group.reduce_scatter(in, data.data() + own, DataType::kInt32, {}, {});
      const std::vector<std::int32_t> out(data.begin() + static_cast<long>(own),
                                          data.begin() + static_cast<long>(own + count));
      demand_sum(out, own, group.size());
    }
  });
}

TEST_P(ReductionOfSize, FloatSumsHaveTheSameBitsOnAllRanksAndInEveryRun) {
  std::vector<std::string> seen;
  for (int repetition = 0; repetition < 3; ++repetition) {
    ThreadRanks ranks(GetParam());
    const auto endings = ranks.run_group([](Communicator& group) {
      std::string bits;
      for (const std::size_t count : {7U, 500U, 30000U, 90001U}) {
        std::vector<float> data(count);
        for (std::size_t i = 0; i < count; ++i) {
          data[i] =
              std::sin(static_cast<float>(i * 13 + 1) * static_cast<float>(group.rank() + 1)) *
              std::pow(10.0F,
                       static_cast<float>((i + static_cast<std::size_t>(group.rank())) % 12));
        }
        group.all_reduce(data.data(), data.data(), count, DataType::kFloat32, {}, {});
        bits.append(reinterpret_cast<const char*>(data.data()), count * sizeof(float));
      }
      return std::to_string(std::hash<std::string>()(bits));
    });
    for (const Ending& ending : endings) {
      ASSERT_TRUE(ending.returned) << ending;
      seen.push_back(ending.words);
    }
  }
  for (const std::string& bits : seen) EXPECT_EQ(bits, seen[0]);
}

INSTANTIATE_TEST_SUITE_P(Reduction, ReductionOfSize, ::testing::Values(1, 2, 3, 5));

TEST(Reduction, MoreRanksThanPointersFitTheStack) {
  ThreadRanks ranks(18);
  const auto endings = ranks.run_group([](Communicator& group) {
    for (const std::size_t count : {5U, 1000U, 40000U}) {
      auto data = contribution(group.rank(), 0, count);
      group.all_reduce(data.data(), data.data(), count, DataType::kInt32, {}, {});
      demand_sum(data, 0, group.size());
    }
    return "";
  });
  for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

}  // namespace
}  // namespace fvd::shm
