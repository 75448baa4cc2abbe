// How a group ends: ranks that leave, die, stop, abort or are interrupted, seen by the others.
// It has over 400 lines because each way is a test of its own over the same few ranks.
#include "shm/group.h"

#include <gtest/gtest.h>

#include <cstring>
#include <future>

#include "support/pattern.h"
#include "support/process_world.h"
#include "support/thread_ranks.h"

namespace fvd::shm {
namespace {

using std::chrono::milliseconds;
using test::demand;
using test::Ending;
using test::ThreadRanks;

const Record kRecord{.op = Op::kBarrier};

/// Two ranks that do two different things with their Group.
class TwoGroups {
 public:
  explicit TwoGroups(const DomainOptions& options = test::small_domain()) : ranks_(2, options) {}

  using Body = std::function<void(std::unique_ptr<Group>)>;
  void run(const Body& first, const Body& second) {
    const auto endings = ranks_.run([&](int rank) {
      auto group =
          Group::join(ranks_.world().domain(rank), ranks_.store(), rank, 2, test::group_options());
      (rank == 0 ? first : second)(std::move(group));
      return "";
    });
    for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
  }
  test::ThreadWorld& world() { return ranks_.world(); }

 private:
  ThreadRanks ranks_;
};

void fill(std::byte* memory) {
  for (std::size_t i = 0; i < 1000; ++i) memory[i] = test::pattern(0, 1, 0, i);
}
void demand_filled(const std::byte* memory) {
  for (std::size_t i = 0; i < 1000; ++i) demand(memory[i] == test::pattern(0, 1, 0, i), "the data");
}

/// Rank 0 does its part of one collective, one-shot and pipelined, and leaves.
void do_part_and_leave(std::unique_ptr<Group> group) {
  const Call call;
  group->begin(kRecord, call);
  fill(group->one_shot());
  group->announce();
  group->wait_announced();
  fill(group->pipeline());
  group->publish(&Progress::staged, 0);
  group->finish();
}

TEST(Group, ASlowRankFinishesAfterTheOtherHasLeftAndDied) {
  TwoGroups two;
  std::promise<void> announced;
  std::promise<void> left;
  two.run(
      [&](std::unique_ptr<Group> group) {
        do_part_and_leave(std::move(group));
        two.world().kill(0);
        left.set_value();
      },
      [&](std::unique_ptr<Group> group) {
        const Call call;
        group->begin(kRecord, call);
        group->announce();
        left.get_future().wait_for(std::chrono::seconds(10));  // here it is slow
        group->wait_announced();
        demand_filled(group->one_shot(0));
        group->wait_for(0, &Progress::staged, 0);
        demand_filled(group->member(0).pipeline());
        const auto ending = test::ending_of([&] {
          group->wait_for(0, &Progress::staged, 1);  // what it did not do before it left
          return "";
        });
        demand(ending.threw(Kind::kPeerLost), ending.words);
        demand(ending.says("killed by the test"), ending.words);
      });
}

TEST(Group, WaitingForARankThatHasLeftSaysSo) {
  TwoGroups two;
  two.run(do_part_and_leave, [](std::unique_ptr<Group> group) {
    const Call call;
    for (int i = 0; i < 2; ++i) {
      const auto ending = test::ending_of([&] {
        group->begin(kRecord, call);
        group->announce();
        group->wait_announced();
        return "";
      });
      if (i == 0) {
        demand(ending.returned, ending.words);
        group->finish();
      } else {
        demand(ending.threw(Kind::kPeerLost) && ending.says("has left the group"), ending.words);
        demand(ending.says("last finished: barrier seq 1"), ending.words);
      }
    }
  });
}

TEST(Group, WhoHasGoneIsNotBlamedForWhatItDidInTime) {
  // Its word may appear, and its death, between the last look and the check.
  TwoGroups two;
  std::promise<void> left;
  two.run(
      [&](std::unique_ptr<Group> group) {
        group.reset();
        left.set_value();
      },
      [&](std::unique_ptr<Group> group) {
        left.get_future().wait_for(std::chrono::seconds(10));
        group->check_rank(0, [] { return true; }, "looking");
        const auto blamed = test::ending_of([&] {
          group->check_rank(0, [] { return false; }, "looking");
          return "";
        });
        demand(blamed.threw(Kind::kPeerLost), blamed.words);
      });
}

TEST(Group, ASlotIsNotUsedAgainWhileASlowRankStillReadsIt) {
  DomainOptions options = test::small_domain();
  options.slots = 1;
  TwoGroups two(options);
  std::promise<void> left;
  std::promise<void> finished;
  two.run(
      [&](std::unique_ptr<Group> group) {
        do_part_and_leave(std::move(group));
        Domain& domain = *two.world().domain(0);
        const auto early = test::ending_of([&] { return std::to_string(domain.take_slot()); });
        left.set_value();
        demand(early.threw(Kind::kSystem), "the slot drains");
        finished.get_future().wait_for(std::chrono::seconds(10));
        demand(domain.take_slot() == 0, "the slot is back");
      },
      [&](std::unique_ptr<Group> group) {
        const Call call;
        group->begin(kRecord, call);
        group->announce();
        left.get_future().wait_for(std::chrono::seconds(10));
        group->wait_announced();
        demand_filled(group->one_shot(0));
        group->finish();
        finished.set_value();
      });
}

/// `size` ranks; `body` is told how to wait for the moment all but `late` wait in a barrier.
std::vector<Ending> barrier_without(int size, int late,
                                    const std::function<void(Communicator&)>& instead) {
  ThreadRanks ranks(size);
  std::promise<void> over;
  auto all_over = over.get_future().share();
  std::atomic<int> waiting{0};
  return ranks.run_group([&](Communicator& group) {
    if (group.rank() == late) {
      while (waiting != size - 1) std::this_thread::yield();
      std::this_thread::sleep_for(milliseconds(20));
      instead(group);
      all_over.wait_for(std::chrono::seconds(5));
      return std::string();
    }
    ++waiting;
    const auto begun = std::chrono::steady_clock::now();
    const auto ending = test::ending_of([&] {
      group.barrier({});
      return "";
    });
    if (--waiting == 0) over.set_value();
    demand(std::chrono::steady_clock::now() - begun < std::chrono::seconds(2), "at once");
    const auto again = test::ending_of([&] {
      group.barrier({});
      return "";
    });
    demand(again.threw(Kind::kAborted), "broken for good: " + again.words);
    demand(again.says("unusable since"), again.words);
    if (ending.kind) throw Error(*ending.kind, ending.words);
    return std::string("returned");
  });
}

TEST(Group, AbortOfOneRankEndsTheWaitOfTheOthers) {
  const auto endings =
      barrier_without(3, 1, [](Communicator& group) { group.abort("no more of this"); });
  for (const int rank : {0, 2}) {
    const Ending& ending = endings[static_cast<std::size_t>(rank)];
    EXPECT_TRUE(ending.threw(Kind::kAborted)) << ending;
    EXPECT_TRUE(ending.says("rank 1")) << ending;
    EXPECT_TRUE(ending.says("no more of this")) << ending;
  }
}

TEST(Group, AbortFromAnotherThreadWakesTheOwnWaitingCollective) {
  ThreadRanks ranks(2);
  std::promise<void> over;
  auto all_over = over.get_future().share();
  const auto endings = ranks.run_group([&](Communicator& group) -> std::string {
    if (group.rank() == 1) {
      all_over.wait_for(std::chrono::seconds(10));
      return "";
    }
    std::thread aborting([&] {
      while (group.sequence_number() == 0) std::this_thread::yield();
      std::this_thread::sleep_for(milliseconds(20));
      group.abort("by my own thread");
    });
    const auto begun = std::chrono::steady_clock::now();
    const auto ending = test::ending_of([&] {
      group.barrier({});
      return "";
    });
    aborting.join();
    over.set_value();
    demand(ending.at - begun < std::chrono::seconds(2), "at once");
    demand(ending.threw(Kind::kAborted) && ending.says("by my own thread"), ending.words);
    return "";
  });
  for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

TEST(Group, AnInterruptedCallBreaksTheGroupForAll) {
  const auto endings = barrier_without(2, 1, [](Communicator& group) {
    const std::function<void()> interrupt = [] { throw std::runtime_error("Ctrl-C"); };
    Call call;
    call.interrupt = &interrupt;
    // The same call as the others', but they are waiting for another collective of theirs first.
    group.abort("stopped by the user");
    EXPECT_THROW(group.barrier(call), Error);
  });
  EXPECT_TRUE(endings[0].says("stopped by the user")) << endings[0];
}

TEST(Group, AnInterruptThrowsThroughAndTheOthersLearnOfIt) {
  ThreadRanks ranks(2);
  std::promise<void> interrupted;
  const auto endings = ranks.run_group([&](Communicator& group) -> std::string {
    if (group.rank() == 1) {
      interrupted.get_future().wait_for(std::chrono::seconds(10));
      group.barrier({});
      return "";
    }
    int calls = 0;
    const std::function<void()> interrupt = [&] {
      if (++calls == 2) throw std::runtime_error("Ctrl-C");
    };
    Call call;
    call.interrupt = &interrupt;
    const auto ending = test::ending_of([&] {
      group.barrier(call);
      return "";
    });
    interrupted.set_value();
    demand(ending.words == "Ctrl-C" && !ending.kind, ending.words);
    return "";
  });
  EXPECT_TRUE(endings[0].returned) << endings[0];
  EXPECT_TRUE(endings[1].threw(Kind::kAborted)) << endings[1];
  EXPECT_TRUE(endings[1].says("was interrupted")) << endings[1];
}

TEST(Group, RefusedArgumentsLeaveItUsable) {
  ThreadRanks ranks(2);
  const auto endings = ranks.run_group([](Communicator& group) {
    float value = 1;
    const auto refused = [](Kind kind, const std::function<void()>& call) {
      const auto ending = test::ending_of([&] {
        call();
        return "";
      });
      demand(ending.threw(kind), ending.words);
    };
    refused(Kind::kInvalidArgument,
            [&] { group.reduce(&value, &value, 1, DataType::kFloat32, {}, 2, {}); });
    refused(Kind::kInvalidArgument, [&] {
      group.all_gather(contiguous_block(static_cast<const void*>(&value), 4), {},
                       DataType::kFloat32, {});
    });
    refused(Kind::kUnsupported,
            [&] { group.all_reduce(&value, &value, 1, DataType::kFloat8E5M2, {}, {}); });
    demand(group.sequence_number() == 0, "nothing was begun");
    group.all_reduce(&value, &value, 1, DataType::kFloat32, {}, {});
    demand(value == 2 && group.sequence_number() == 1, "the group works");
    return "";
  });
  for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

TEST(Group, AShortTimeoutOfACallEndsItInTime) {
  ThreadRanks ranks(2);
  std::promise<void> over;
  const auto endings = ranks.run_group([&](Communicator& group) -> std::string {
    if (group.rank() == 1) {
      over.get_future().wait_for(std::chrono::seconds(10));
      return "";
    }
    Call call;
    call.timeout = milliseconds(30);
    const auto begun = std::chrono::steady_clock::now();
    const auto ending = test::ending_of([&] {
      group.barrier(call);
      return "";
    });
    over.set_value();
    demand(ending.threw(Kind::kTimeout), ending.words);
    demand(ending.at - begun >= milliseconds(30), "not before its time");
    demand(ending.at - begun < milliseconds(test::kSanitized ? 2000 : 500), "in time");
    return "";
  });
  for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

TEST(Group, SeveralGroupsOfOneProcessAtATime) {
  ThreadRanks ranks(3);
  const auto endings = ranks.run([&](int rank) {
    std::vector<std::future<void>> threads;
    std::vector<std::unique_ptr<Communicator>> groups;
    for (int g = 0; g < 3; ++g) {
      groups.push_back(ranks.world().communicator(ranks.store(), rank, test::group_options()));
    }
    for (const auto& group : groups) {
      threads.push_back(std::async(std::launch::async, [&group] {
        for (std::int64_t i = 0; i < 200; ++i) {
          std::int64_t value = i + group->rank();
          group->all_reduce(&value, &value, 1, DataType::kInt64, {}, {});
          demand(value == 3 * i + 3, "the sum");
        }
      }));
    }
    for (auto& thread : threads) thread.get();
    return "";
  });
  for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

// --- forked ranks ---

class ForkedGroup : public test::ForkedTest {};

TEST_F(ForkedGroup, AStoppedRankIsNamedWithItsStateAndWhatItFinished) {
  test::ForkedRanks ranks(3, [](test::ForkedRank& rank) {
    const auto group = rank.join();
    group->barrier({});
    if (rank.rank == 2) raise(SIGSTOP);
    Call call;
    call.timeout = milliseconds(400);
    group->barrier(call);
    return "";
  });
  ranks.await_stop(2);
  for (const int r : {0, 1}) {
    const Ending ending = ranks.ending(r);
    EXPECT_TRUE(ending.threw(Kind::kTimeout)) << ending;
    // The first to notice lists it; the other may learn it from him.
    EXPECT_TRUE(
        ending.says(text("missing: rank 2  pid ", ranks.pid(2), "  state T (stopped by a signal)")))
        << ending;
    EXPECT_TRUE(ending.says("last finished: barrier seq 1")) << ending;
    EXPECT_FALSE(ending.says("missing: rank 0") || ending.says("missing: rank 1")) << ending;
  }
}

TEST_F(ForkedGroup, ADeathIsNoticedWhileAnotherRankIsLate) {
  test::ForkedRanks ranks(3, [](test::ForkedRank& rank) {
    const auto group = rank.join();
    group->barrier({});
    if (rank.rank == 1) raise(SIGSTOP);  // whom rank 0 waits for first
    if (rank.rank == 2) raise(SIGKILL);
    group->barrier({});
    return "";
  });
  ranks.await_stop(1);
  const Ending ending = ranks.ending(0);
  EXPECT_TRUE(ending.threw(Kind::kPeerLost)) << ending;
  EXPECT_TRUE(ending.says("rank 2")) << ending;
}

constexpr std::size_t kLarge = 6 << 20;

/// One large collective by its name; `memory` holds 2 * kLarge bytes.
void run_collective(const std::string& name, Communicator& group, std::byte* memory) {
  const auto size = static_cast<std::size_t>(group.size());
  std::byte* const out = memory + kLarge;
  const std::size_t part = kLarge / size / 4 * 4;
  std::vector<ConstBlock> in_blocks;
  std::vector<Block> out_blocks;
  for (std::size_t r = 0; r < size; ++r) {
    in_blocks.push_back(contiguous_block(static_cast<const void*>(memory + r * part), part));
    out_blocks.push_back(contiguous_block(static_cast<void*>(out + r * part), part));
  }
  constexpr auto kType = DataType::kInt32;
  const auto whole = contiguous_block(static_cast<void*>(memory), kLarge);
  const bool root = group.rank() == 0;
  if (name == "Barrier") group.barrier({});
  if (name == "BroadcastFromTheKilled") group.broadcast(whole, kType, 2, {});
  if (name == "BroadcastToTheKilled") group.broadcast(whole, kType, 0, {});
  if (name == "AllReduce") group.all_reduce(memory, out, kLarge / 4, kType, {}, {});
  if (name == "Reduce") group.reduce(memory, out, kLarge / 4, kType, {}, 0, {});
  if (name == "AllGather") group.all_gather(in_blocks[0], out_blocks, kType, {});
  if (name == "Gather") {
    group.gather(in_blocks[0], root ? std::span<const Block>(out_blocks) : std::span<const Block>(),
                 kType, 0, {});
  }
  if (name == "Scatter") {
    group.scatter(root ? std::span<const ConstBlock>(in_blocks) : std::span<const ConstBlock>(),
                  out_blocks[0], kType, 0, {});
  }
  if (name == "ReduceScatter") group.reduce_scatter(in_blocks, out, kType, {}, {});
  if (name == "AllToAll") group.all_to_all(in_blocks, out_blocks, kType, true, {});
  if (name == "UnevenAllToAll") group.all_to_all(in_blocks, out_blocks, kType, false, {});
  if (name == "SendAndRecv") {
    // Round the ring, so that everybody waits for the killed one's neighbour or for himself.
    const int next = (group.rank() + 1) % group.size();
    const int previous = (group.rank() + group.size() - 1) % group.size();
    const auto sending =
        group.send(contiguous_block(static_cast<const void*>(memory), kLarge), kType, next, 0, {});
    const auto receiving =
        group.recv(contiguous_block(static_cast<void*>(out), kLarge), kType, previous, 0, {});
    sending->wait({});
    receiving->wait({});
  }
}

class ForkedFault : public ::testing::WithParamInterface<const char*>, public test::ForkedTest {};

TEST_P(ForkedFault, SurvivorsOfAKilledRankLearnOfItWithinASecond) {
  DomainOptions options = test::small_domain();
  options.staging_bytes = 1 << 20;
  test::ForkedRanks ranks(
      3,
      [](test::ForkedRank& rank) {
        const auto group = rank.join();
        std::vector<std::byte> memory(2 * kLarge);
        int rounds = 0;
        const Ending ending = test::ending_of([&] {
          while (true) {
            run_collective(GetParam(), *group, memory.data());
            if (++rounds == 3) rank.say("running/" + std::to_string(rank.rank));
          }
          return "";
        });
        const auto lost_at = ending.at;
        demand(ending.threw(Kind::kPeerLost), "first: " + ending.words);
        const Ending again = test::ending_of([&] {
          run_collective(GetParam(), *group, memory.data());
          return "";
        });
        demand(again.threw(Kind::kAborted), "then: " + again.words);
        return std::to_string(lost_at.time_since_epoch().count()) + " " + ending.words;
      },
      options);
  for (int r = 0; r < 3; ++r) ranks.await("running/" + std::to_string(r));
  usleep(7 * 1000);
  const auto killed = ranks.signal(2, SIGKILL);
  for (const int r : {0, 1}) {
    const Ending ending = ranks.ending(r);
    ASSERT_TRUE(ending.returned) << ending;
    const std::chrono::steady_clock::time_point lost{
        std::chrono::steady_clock::duration(std::stoll(ending.words))};
    EXPECT_LT(test::seconds_between(killed, lost), 1.0);
    EXPECT_TRUE(ending.says(text("rank 2 (pid ", ranks.pid(2), ")"))) << ending;
    EXPECT_TRUE(ending.says("signal 9")) << ending;
  }
}

INSTANTIATE_TEST_SUITE_P(Group, ForkedFault,
                         ::testing::Values("Barrier", "BroadcastFromTheKilled",
                                           "BroadcastToTheKilled", "AllReduce", "Reduce",
                                           "AllGather", "Gather", "Scatter", "ReduceScatter",
                                           "AllToAll", "UnevenAllToAll", "SendAndRecv"),
                         [](const auto& info) { return std::string(info.param); });

TEST_F(ForkedGroup, ARankThatDestroysItsGroupAndExitsHarmsNoSlowOne) {
  // Rank 1 is stopped while rank 0 finishes, leaves and exits.
  test::ForkedRanks ranks(2, [](test::ForkedRank& rank) {
    const auto group = Group::join(rank.domain = make_domain(rank.options), rank.store, rank.rank,
                                   2, test::group_options());
    const Call call;
    group->begin(kRecord, call);
    if (rank.rank == 0) fill(group->one_shot());
    group->announce();
    if (rank.rank == 1) raise(SIGSTOP);
    group->wait_announced();
    if (rank.rank == 1) demand_filled(group->one_shot(0));
    group->finish();
    return "";
  });
  ranks.await_stop(1);
  EXPECT_TRUE(ranks.ending(0).returned);
  siginfo_t info{};
  waitid(P_PID, static_cast<id_t>(ranks.pid(0)), &info, WEXITED | WNOWAIT);
  ranks.signal(1, SIGCONT);
  const Ending ending = ranks.ending(1);
  EXPECT_TRUE(ending.returned) << ending;
}

}  // namespace
}  // namespace fvd::shm
