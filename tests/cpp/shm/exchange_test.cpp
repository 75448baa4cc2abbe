// Moves around every size at which the transport changes its way: the line, the one-shot area, one
// round of the pipeline, several. Blocks lie in runs that differ between sender and receiver.
#include "shm/exchange.h"

#include <gtest/gtest.h>

#include "support/pattern.h"
#include "support/thread_ranks.h"

namespace fvd::shm {
namespace {

using test::demand;
using test::Ending;
using test::Strided;
using test::ThreadRanks;

/// Block sizes around every limit, for `pieces` blocks in one staging area.
std::vector<std::size_t> sizes_around_limits(std::size_t pieces) {
  const DomainOptions options = test::small_domain();
  const std::size_t half = options.staging_bytes / 2 / 64 * 64;
  const std::size_t round = half / pieces / 64 * 64;
  std::vector<std::size_t> sizes{0, 1};
  for (const std::size_t limit : {kInlineBytes / pieces, options.one_shot_bytes / pieces / 64 * 64,
                                  round, 2 * round, 3 * round}) {
    for (const std::size_t bytes : {limit - 1, limit, limit + 1}) sizes.push_back(bytes);
  }
  sizes.push_back(5 * round + 30);
  return sizes;
}

class ExchangeOfSize : public ::testing::TestWithParam<int> {
 protected:
  /// One group; `body` once per block size, each rank in its thread.
  void for_each_size(
      std::size_t pieces,
      const std::function<void(Communicator&, std::size_t bytes, std::size_t round)>& body) {
    ThreadRanks ranks(GetParam());
    const auto sizes = sizes_around_limits(pieces);
    const auto endings = ranks.run_group([&](Communicator& group) {
      for (std::size_t round = 0; round < sizes.size(); ++round) body(group, sizes[round], round);
      return "";
    });
    for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
  }
  std::size_t pieces() const { return static_cast<std::size_t>(GetParam()); }
};

/// One strided block per rank; senders' and receivers' runs differ.
std::vector<Strided> blocks(int count, std::size_t bytes, std::size_t most_runs) {
  return std::vector<Strided>(static_cast<std::size_t>(count), Strided(bytes, most_runs));
}
std::vector<Block> views(std::vector<Strided>& blocks) {
  std::vector<Block> views;
  for (Strided& block : blocks) views.push_back(block.block());
  return views;
}
std::vector<ConstBlock> const_views(const std::vector<Strided>& blocks) {
  std::vector<ConstBlock> views;
  for (const Strided& block : blocks) views.push_back(block.const_block());
  return views;
}

void demand_right(const Strided& got, int from, int to, std::size_t round, std::size_t bytes) {
  const long wrong = got.first_wrong(from, to, round);
  demand(wrong == -1, text("block of ", bytes, " bytes from ", from, " to ", to, ", byte ", wrong));
}

constexpr int kAll = 1000;  // as the receiver of what goes to everybody

TEST_P(ExchangeOfSize, AllToAll) {
  for_each_size(pieces(), [](Communicator& group, std::size_t bytes, std::size_t round) {
    auto in = blocks(group.size(), bytes, 4);
    auto out = blocks(group.size(), bytes, 3);
    for (int r = 0; r < group.size(); ++r)
      in[static_cast<std::size_t>(r)].fill(group.rank(), r, round);
    group.all_to_all(const_views(in), views(out), DataType::kUInt8, true, {});
    for (int r = 0; r < group.size(); ++r) {
      demand_right(out[static_cast<std::size_t>(r)], r, group.rank(), round, bytes);
    }
  });
}

TEST_P(ExchangeOfSize, AllGather) {
  for_each_size(1, [](Communicator& group, std::size_t bytes, std::size_t round) {
    Strided in(bytes, 3);
    in.fill(group.rank(), kAll, round);
    auto out = blocks(group.size(), bytes, 4);
    group.all_gather(in.const_block(), views(out), DataType::kUInt8, {});
    for (int r = 0; r < group.size(); ++r) {
      demand_right(out[static_cast<std::size_t>(r)], r, kAll, round, bytes);
    }
  });
}

TEST_P(ExchangeOfSize, AllGatherInPlace) {
  for_each_size(1, [](Communicator& group, std::size_t bytes, std::size_t round) {
    auto out = blocks(group.size(), bytes, 4);
    Strided& own = out[static_cast<std::size_t>(group.rank())];
    own.fill(group.rank(), kAll, round);
    group.all_gather(own.const_block(), views(out), DataType::kUInt8, {});
    for (int r = 0; r < group.size(); ++r) {
      demand_right(out[static_cast<std::size_t>(r)], r, kAll, round, bytes);
    }
  });
}

TEST_P(ExchangeOfSize, BroadcastFromEveryRoot) {
  for_each_size(1, [](Communicator& group, std::size_t bytes, std::size_t round) {
    for (int root = 0; root < group.size(); ++root) {
      Strided data(bytes, group.rank() == root ? 3 : 4);
      if (group.rank() == root) data.fill(root, kAll, round);
      group.broadcast(data.block(), DataType::kUInt8, root, {});
      demand_right(data, root, kAll, round, bytes);
    }
  });
}

TEST_P(ExchangeOfSize, GatherToEveryRoot) {
  for_each_size(1, [](Communicator& group, std::size_t bytes, std::size_t round) {
    for (int root = 0; root < group.size(); ++root) {
      Strided in(bytes, 3);
      in.fill(group.rank(), root, round);
      auto out = blocks(group.rank() == root ? group.size() : 0, bytes, 4);
      group.gather(in.const_block(), views(out), DataType::kUInt8, root, {});
      for (int r = 0; r < static_cast<int>(out.size()); ++r) {
        demand_right(out[static_cast<std::size_t>(r)], r, root, round, bytes);
      }
    }
  });
}

TEST_P(ExchangeOfSize, ScatterFromEveryRoot) {
  for_each_size(pieces(), [](Communicator& group, std::size_t bytes, std::size_t round) {
    for (int root = 0; root < group.size(); ++root) {
      auto in = blocks(group.rank() == root ? group.size() : 0, bytes, 4);
      for (int r = 0; r < static_cast<int>(in.size()); ++r) {
        in[static_cast<std::size_t>(r)].fill(root, r, round);
      }
      Strided out(bytes, 3);
      group.scatter(const_views(in), out.block(), DataType::kUInt8, root, {});
      demand_right(out, root, group.rank(), round, bytes);
    }
  });
}

/// Bytes from one rank to another, some of them none.
std::size_t uneven_bytes(int from, int to, std::size_t bytes) {
  const int kind = (from * 3 + to) % 4;
  return kind == 0 ? 0 : kind == 1 ? bytes : kind == 2 ? bytes / 2 + 1 : 7;
}

TEST_P(ExchangeOfSize, UnevenAllToAll) {
  for_each_size(pieces(), [](Communicator& group, std::size_t bytes, std::size_t round) {
    std::vector<Strided> in;
    std::vector<Strided> out;
    for (int r = 0; r < group.size(); ++r) {
      in.emplace_back(uneven_bytes(group.rank(), r, bytes), 4);
      in.back().fill(group.rank(), r, round);
      out.emplace_back(uneven_bytes(r, group.rank(), bytes), 3);
    }
    group.all_to_all(const_views(in), views(out), DataType::kUInt8, false, {});
    for (int r = 0; r < group.size(); ++r) {
      demand_right(out[static_cast<std::size_t>(r)], r, group.rank(), round, bytes);
    }
  });
}

TEST_P(ExchangeOfSize, UnevenAllToAllOfNothing) {
  ThreadRanks ranks(GetParam());
  const auto endings = ranks.run_group([](Communicator& group) {
    const std::vector<ConstBlock> in(static_cast<std::size_t>(group.size()));
    const std::vector<Block> out(static_cast<std::size_t>(group.size()));
    for (int i = 0; i < 3; ++i) group.all_to_all(in, out, DataType::kFloat32, false, {});
    group.barrier({});
    return "";
  });
  for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

TEST_P(ExchangeOfSize, ManyInARowOfChangingSizes) {
  // What one collective leaves in the staging areas must not show in the next.
  ThreadRanks ranks(GetParam());
  const auto endings = ranks.run_group([](Communicator& group) {
    for (std::size_t round = 0; round < 200; ++round) {
      const std::size_t bytes = (round * 7919) % 9000;
      Strided data(bytes, 2);
      const int root = static_cast<int>(round) % group.size();
      if (group.rank() == root) data.fill(root, kAll, round);
      group.broadcast(data.block(), DataType::kUInt8, root, {});
      demand_right(data, root, kAll, round, bytes);
    }
    return "";
  });
  for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

INSTANTIATE_TEST_SUITE_P(Exchange, ExchangeOfSize, ::testing::Values(1, 2, 3, 5));

TEST(Exchange, LengthsThatDisagreeAreAMismatchThatNamesThePairAndTouchesNothing) {
  ThreadRanks ranks(3);
  const auto endings = ranks.run_group([](Communicator& group) {
    std::vector<Strided> in;
    std::vector<Strided> out;
    for (int r = 0; r < 3; ++r) {
      in.emplace_back(group.rank() == 1 && r == 2 ? 20 : 40, 1);
      out.emplace_back(40, 1);
    }
    const auto ending = test::ending_of([&] {
      group.all_to_all(const_views(in), views(out), DataType::kFloat32, false, {});
      return "";
    });
    for (const Strided& block : out) demand(block.untouched(), "no output was touched");
    demand(ending.threw(Kind::kMismatch), ending.words);
    return ending.words;
  });
  for (const Ending& ending : endings) {
    ASSERT_TRUE(ending.returned) << ending;
    EXPECT_TRUE(ending.says("rank 1 sends 5 elements to rank 2, which expects 10")) << ending;
  }
}

}  // namespace
}  // namespace fvd::shm
