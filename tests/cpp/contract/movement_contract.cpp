// Promises of the collectives that move bytes: barrier, broadcast, gathers, scatter, all_to_all.
#include <sys/mman.h>

#include <atomic>

#include "contract/communicator_contract.h"

namespace fvd::test {
namespace {

constexpr DataType kBytes = DataType::kUInt8;

/// A counter that threads and forked ranks share.
class SharedCounter {
 public:
  SharedCounter()
      : value_(new(mmap(nullptr, sizeof(std::atomic<int>), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0)) std::atomic<int>(0)) {}
  ~SharedCounter() { munmap(value_, sizeof(std::atomic<int>)); }
  // Relaxed: the order must come from the barrier under test.
  void add() { value_->fetch_add(1, std::memory_order_relaxed); }
  int value() const { return value_->load(std::memory_order_relaxed); }

 private:
  std::atomic<int>* value_;
};

/// Blocks of all ranks, in one shape.
std::vector<StridedMemory> one_per_rank(int size, const StridedMemory& shape) {
  return std::vector<StridedMemory>(static_cast<std::size_t>(size), shape);
}
std::vector<Block> blocks_of(std::vector<StridedMemory>& memories) {
  std::vector<Block> blocks;
  for (StridedMemory& memory : memories) blocks.push_back(memory.block());
  return blocks;
}
std::vector<ConstBlock> const_blocks_of(const std::vector<StridedMemory>& memories) {
  std::vector<ConstBlock> blocks;
  for (const StridedMemory& memory : memories) blocks.push_back(memory.const_block());
  return blocks;
}
std::uint64_t seed_of(int from, int to) { return static_cast<std::uint64_t>(from * 64 + to); }

}  // namespace

TEST_P(CommunicatorContract, KnowsItsRankAndSize) {
  run([this](Communicator& group) {
    require(group.size() == size(), "size ", group.size());
    // Everybody tells his rank: each must be there once, in its place.
    const auto mine = static_cast<std::byte>(group.rank());
    std::vector<std::byte> ranks(static_cast<std::size_t>(size()), std::byte{0xFF});
    std::vector<Block> blocks;
    for (std::byte& rank : ranks) blocks.push_back(contiguous_block(&rank, 1));
    group.all_gather(contiguous_block(&mine, 1), blocks, kBytes, {});
    for (int rank = 0; rank < size(); ++rank) {
      const auto found = std::to_integer<int>(ranks[static_cast<std::size_t>(rank)]);
      require(found == rank, "in place ", rank, " is rank ", found);
    }
  });
}

TEST_P(CommunicatorContract, BarrierLetsNobodyLeaveBeforeAllHaveCome) {
  SharedCounter come;
  run([&](Communicator& group) {
    for (int turn = 1; turn <= 50; ++turn) {
      come.add();
      group.barrier({});
      require(come.value() >= turn * size(), "turn ", turn, ": left when ", come.value(),
              " had come");
    }
  });
}

TEST_P(CommunicatorContract, BroadcastGivesTheRootsBytesToAll) {
  run([this](Communicator& group) {
    int root = 0;
    for (std::size_t bytes : byte_counts()) {
      for (StridedMemory& memory : shapes_of(bytes)) {
        const std::uint64_t seed = bytes + static_cast<std::size_t>(root);
        if (group.rank() == root) memory.fill(seed);
        group.broadcast(memory.block(), kBytes, root, {});
        memory.check(seed, text("broadcast of ", bytes, " bytes from rank ", root));
        root = (root + 1) % size();
      }
    }
  });
}

TEST_P(CommunicatorContract, BroadcastMayHaveAnotherShapeOnEachRank) {
  run([](Communicator& group) {
    const bool root = group.rank() == 0;
    StridedMemory memory = root ? StridedMemory(1, 30000, 0) : StridedMemory(10000, 3, 1);
    if (root) memory.fill(5);
    group.broadcast(memory.block(), kBytes, 0, {});
    memory.check(5, "broadcast into another shape");
  });
}

TEST_P(CommunicatorContract, ManyBroadcastsInARowDoNotOvertakeTheReaders) {
  run([](Communicator& group) {
    for (std::uint64_t turn = 0; turn < 100; ++turn) {
      StridedMemory memory(1, 1000 + turn * 100, 0);
      if (group.rank() == 0) memory.fill(turn);
      group.broadcast(memory.block(), kBytes, 0, {});
      memory.check(turn, text("broadcast number ", turn));
    }
  });
}

TEST_P(CommunicatorContract, AllGatherPutsEachRanksBytesInItsPlace) {
  run([this](Communicator& group) {
    for (std::size_t bytes : byte_counts()) {
      for (StridedMemory& in : shapes_of(bytes)) {
        auto out = one_per_rank(size(), in);
        in.fill(seed_of(group.rank(), 0));
        group.all_gather(in.const_block(), blocks_of(out), kBytes, {});
        for (int from = 0; from < size(); ++from)
          out[static_cast<std::size_t>(from)].check(seed_of(from, 0),
                                                    text("all_gather of ", bytes, " from ", from));
        in.check(seed_of(group.rank(), 0), "the input");
      }
    }
  });
}

TEST_P(CommunicatorContract, AllGatherWorksInPlace) {
  run([this](Communicator& group) {
    const auto me = static_cast<std::size_t>(group.rank());
    for (std::size_t bytes : byte_counts()) {
      auto out = one_per_rank(size(), StridedMemory(1, bytes, 0));
      out[me].fill(seed_of(group.rank(), 0));
      group.all_gather(out[me].const_block(), blocks_of(out), kBytes, {});
      for (int from = 0; from < size(); ++from)
        out[static_cast<std::size_t>(from)].check(seed_of(from, 0),
                                                  text("in place, ", bytes, " bytes from ", from));
    }
  });
}

TEST_P(CommunicatorContract, GatherFillsTheRootAlone) {
  run([this](Communicator& group) {
    int root = 0;
    for (std::size_t bytes : byte_counts()) {
      for (StridedMemory& in : shapes_of(bytes)) {
        const bool here = group.rank() == root;
        auto out = here ? one_per_rank(size(), in) : std::vector<StridedMemory>{};
        in.fill(seed_of(group.rank(), root));
        group.gather(in.const_block(), blocks_of(out), kBytes, root, {});
        for (std::size_t from = 0; from < out.size(); ++from)
          out[from].check(seed_of(static_cast<int>(from), root),
                          text("gather of ", bytes, " from ", from));
        root = (root + 1) % size();
      }
    }
  });
}

TEST_P(CommunicatorContract, ScatterGivesEachRankItsPart) {
  run([this](Communicator& group) {
    int root = 0;
    for (std::size_t bytes : byte_counts()) {
      for (StridedMemory& out : shapes_of(bytes)) {
        auto in = group.rank() == root ? one_per_rank(size(), out) : std::vector<StridedMemory>{};
        for (std::size_t to = 0; to < in.size(); ++to)
          in[to].fill(seed_of(root, static_cast<int>(to)));
        group.scatter(const_blocks_of(in), out.block(), kBytes, root, {});
        out.check(seed_of(root, group.rank()), text("scatter of ", bytes, " from ", root));
        root = (root + 1) % size();
      }
    }
  });
}

TEST_P(CommunicatorContract, AllToAllExchangesEqualBlocks) {
  run([this](Communicator& group) {
    for (std::size_t bytes : byte_counts()) {
      for (const StridedMemory& shape : shapes_of(bytes)) {
        auto in = one_per_rank(size(), shape);
        auto out = in;
        for (int to = 0; to < size(); ++to)
          in[static_cast<std::size_t>(to)].fill(seed_of(group.rank(), to));
        group.all_to_all(const_blocks_of(in), blocks_of(out), kBytes, true, {});
        for (int from = 0; from < size(); ++from)
          out[static_cast<std::size_t>(from)].check(seed_of(from, group.rank()),
                                                    text("all_to_all of ", bytes, " from ", from));
      }
    }
  });
}

TEST_P(CommunicatorContract, AllToAllSplitsAlongOneDimensionAndJoinsAlongAnother) {
  run([this](Communicator& group) {
    // [rows, columns] of 2-byte elements: columns are divided, rows are joined.
    const std::int64_t rows = 37, columns = 24 * size();
    const std::int64_t in_sizes[] = {rows, columns},
                       out_sizes[] = {rows * size(), columns / size()};
    const auto ranks = static_cast<std::size_t>(size());
    const auto from = BlockLayout::split(in_sizes, 1, 2, ranks),
               to = BlockLayout::split(out_sizes, 0, 2, ranks);
    std::vector<std::uint16_t> in, out(static_cast<std::size_t>(rows * columns));
    for (std::int64_t i = 0; i < rows * columns; ++i)
      in.push_back(static_cast<std::uint16_t>(group.rank() * 5000 + i % 5000));
    std::vector<ConstBlock> sent;
    std::vector<Block> received;
    for (std::size_t peer = 0; peer < ranks; ++peer) {
      sent.push_back(from.block(static_cast<const void*>(in.data()), peer));
      received.push_back(to.block(out.data(), peer));
    }
    group.all_to_all(sent, received, DataType::kUInt16, true, {});
    for (std::int64_t row = 0; row < rows * size(); ++row) {
      for (std::int64_t column = 0; column < columns / size(); ++column) {
        const std::int64_t there =
            (row % rows) * columns + group.rank() * (columns / size()) + column;
        const auto wanted = static_cast<std::uint16_t>(row / rows * 5000 + there % 5000);
        const auto found = out[static_cast<std::size_t>(row * (columns / size()) + column)];
        require(found == wanted, "row ", row, " column ", column, ": ", found, " instead of ",
                wanted);
      }
    }
  });
}

TEST_P(CommunicatorContract, AllToAllLaysTheBlocksOfAPairEndToEnd) {
  run([this](Communicator& group) {
    // Cut differently on either side: three blocks are sent, the same bytes received in two.
    for (const bool even : {true, false}) {
      for (std::size_t bytes : byte_counts()) {
        const auto ranks = static_cast<std::size_t>(size());
        const std::size_t cuts[] = {0, bytes / 3, bytes / 2, bytes};
        std::vector<StridedMemory> in, out;
        for (int peer = 0; peer < size(); ++peer) {
          in.emplace_back(1, bytes, 0);
          in.back().fill(seed_of(group.rank(), peer));
          out.emplace_back(1, bytes, 0);
        }
        std::vector<ConstBlock> sent;
        std::vector<Block> received;
        for (std::size_t peer = 0; peer < ranks; ++peer) {
          const auto from = in[peer].const_block();
          const auto to = out[peer].block();
          for (int i = 0; i < 3; ++i)
            sent.push_back({from.data + cuts[i], 1, cuts[i + 1] - cuts[i], cuts[i + 1] - cuts[i]});
          received.push_back({to.data, 1, bytes / 5, bytes / 5});
          received.push_back({to.data + bytes / 5, 1, bytes - bytes / 5, bytes - bytes / 5});
        }
        std::vector<ConstBlocks> from_lists;
        std::vector<Blocks> to_lists;
        for (std::size_t peer = 0; peer < ranks; ++peer) {
          from_lists.push_back(ConstBlocks(sent).subspan(3 * peer, 3));
          to_lists.push_back(Blocks(received).subspan(2 * peer, 2));
        }
        group.all_to_all(from_lists, to_lists, kBytes, even, {});
        for (int from = 0; from < size(); ++from)
          out[static_cast<std::size_t>(from)].check(
              seed_of(from, group.rank()), text("lists of ", bytes, " in all, from ", from));
      }
    }
  });
}

TEST_P(CommunicatorContract, AllToAllExchangesUnequalBlocks) {
  run([this](Communicator& group) {
    for (std::size_t scale :
         {std::size_t{0}, std::size_t{1}, std::size_t{997}, GetParam().staging_bytes / 2 + 3}) {
      const auto bytes = [&](int from, int to) {
        return static_cast<std::size_t>((from * 3 + to * 5) % 7) * scale;
      };
      std::vector<StridedMemory> in, out;
      for (int peer = 0; peer < size(); ++peer) {
        in.emplace_back(1, bytes(group.rank(), peer), 0);
        in.back().fill(seed_of(group.rank(), peer));
        out.emplace_back(1, bytes(peer, group.rank()), 0);
      }
      group.all_to_all(const_blocks_of(in), blocks_of(out), kBytes, false, {});
      for (int from = 0; from < size(); ++from)
        out[static_cast<std::size_t>(from)].check(seed_of(from, group.rank()),
                                                  text("unequal, from ", from));
    }
  });
}

TEST_P(CommunicatorContract, AllToAllOfRunsThatMatch) {
  run([this](Communicator& group) {
    // Of each pair two blocks, one of three runs; of one rank nothing is sent to one other.
    for (const std::size_t scale : {std::size_t{1}, std::size_t{997}, std::size_t{20000}}) {
      const auto bytes = [&](int from, int to) {
        return static_cast<std::size_t>((from * 3 + to * 5) % 7) * scale;
      };
      std::vector<StridedMemory> in, out;
      std::vector<ConstBlock> sent;
      std::vector<Block> received;
      for (int peer = 0; peer < size(); ++peer) {
        in.emplace_back(3, bytes(group.rank(), peer), 5);
        in.emplace_back(1, scale, 0);
        out.emplace_back(3, bytes(peer, group.rank()), 2);
        out.emplace_back(1, scale, 0);
        for (std::size_t i = in.size() - 2; i < in.size(); ++i)
          in[i].fill(seed_of(group.rank(), peer) + i % 2);
      }
      std::vector<ConstBlocks> from_lists;
      std::vector<Blocks> to_lists;
      for (const auto& memory : in) sent.push_back(memory.const_block());
      for (auto& memory : out) received.push_back(memory.block());
      for (std::size_t peer = 0; peer < static_cast<std::size_t>(size()); ++peer) {
        from_lists.push_back(ConstBlocks(sent).subspan(2 * peer, 2));
        to_lists.push_back(Blocks(received).subspan(2 * peer, 2));
      }
      group.all_to_all_runs(from_lists, to_lists, kBytes, {});
      for (std::size_t i = 0; i < out.size(); ++i) {
        const int from = static_cast<int>(i / 2);
        out[i].check(seed_of(from, group.rank()) + i % 2, text("block ", i % 2, " from ", from));
      }
    }
  });
}

TEST_P(CommunicatorContract, SequenceNumberCountsCollectives) {
  run([](Communicator& group) {
    const std::uint64_t before = group.sequence_number();
    for (int turn = 0; turn < 3; ++turn) group.barrier({});
    require(group.sequence_number() == before + 3, group.sequence_number(), " after three, ",
            before, " before");
  });
}

}  // namespace fvd::test
