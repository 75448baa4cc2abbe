// What joining checks before anybody may use the group, and what it leaves in the store.
#include <gtest/gtest.h>

#include "shm/group.h"
#include "support/process_world.h"
#include "support/thread_ranks.h"

namespace fvd::shm {
namespace {

using test::Ending;
using test::ThreadRanks;

TEST(Join, EverybodyIsInTheSameGroup) {
  for (const int size : {1, 2, 3, 5}) {
    ThreadRanks ranks(size);
    const auto endings = ranks.run([&](int rank) {
      const auto group =
          Group::join(ranks.world().domain(rank), ranks.store(), rank, size, test::group_options());
      test::demand(group->rank() == rank && group->size() == size, "rank and size");
      test::demand(group->epoch() != 0, "an epoch");
      return std::to_string(group->epoch());
    });
    for (const Ending& ending : endings) {
      EXPECT_TRUE(ending.returned) << ending;
      EXPECT_EQ(ending.words, endings[0].words);
    }
  }
}

TEST(Join, LeavesNoValueInTheStore) {
  ThreadRanks ranks(3);
  for (int i = 0; i < 3; ++i) {
    for (const Ending& ending : ranks.run_group([](Communicator&) { return ""; })) {
      EXPECT_TRUE(ending.returned) << ending;
    }
  }
  EXPECT_EQ(ranks.store().size(), 0U);
}

TEST(Join, AMissingRankIsNamed) {
  ThreadRanks ranks(3);
  const auto begun = std::chrono::steady_clock::now();
  const auto endings = ranks.run([&](int rank) {
    if (rank == 1) return "";
    ranks.world().communicator(ranks.store(), rank,
                               test::group_options("tp", std::chrono::milliseconds(300)));
    return "joined";
  });
  for (const int rank : {0, 2}) {
    const Ending& ending = endings[static_cast<std::size_t>(rank)];
    EXPECT_TRUE(ending.threw(Kind::kTimeout)) << ending;
    EXPECT_TRUE(ending.says("group \"tp\"")) << ending;
    EXPECT_TRUE(ending.says("had not come: 1")) << ending;
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(5));
}

TEST(Join, CtrlCEndsTheWaitForOthers) {
  ThreadRanks ranks(2);
  const std::function<void()> ctrl_c = [] { throw std::runtime_error("Ctrl-C"); };
  GroupOptions options = test::group_options("alone", std::chrono::seconds(60));
  options.interrupt = &ctrl_c;
  const auto begun = std::chrono::steady_clock::now();
  const auto endings = ranks.run([&](int rank) {
    if (rank == 1) return "";
    ranks.world().communicator(ranks.store(), rank, options);
    return "joined";
  });
  EXPECT_EQ(endings[0].words, "Ctrl-C");
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(5));
}

TEST(Join, AStoreThatLeavesWithAQuickRankHarmsNobody) {
  class LeavingStore : public test::MemoryStore {
   public:
    void remove(const std::string&) override { throw Error(Kind::kSystem, "the store has left"); }
  };
  ThreadRanks ranks(3);
  LeavingStore store;
  const auto endings = ranks.run([&](int rank) {
    ranks.world().communicator(store, rank, test::group_options())->barrier({});
    return "";
  });
  for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

TEST(Join, AWordOfGivingUpThatIsNoneOfOursIsOnlyText) {
  ThreadRanks ranks(2);
  for (const std::string word : {"99 x", "-1 x", "x", " ", "3", "99999999999999999999 x"}) {
    SCOPED_TRACE(word);
    test::MemoryStore store;
    store.set("shm/1/gave_up", word);
    const auto ending = test::ending_of([&] {
      ranks.world().communicator(store, 0, test::group_options("tp", std::chrono::seconds(20)));
      return "joined";
    });
    EXPECT_TRUE(ending.kind.has_value()) << ending;
  }
}

/// Group::join of two ranks, the second of which publishes something else than it should.
std::vector<Ending> join_with_second(const std::function<std::string(PeerInfo)>& changed) {
  class ForgingStore : public test::MemoryStore {
   public:
    explicit ForgingStore(const std::function<std::string(PeerInfo)>& change) : change_(change) {}
    void set(const std::string& key, const std::string& value) override {
      const bool forge = key.size() > 6 && key.compare(key.size() - 6, 6, "info/1") == 0;
      MemoryStore::set(key, forge ? change_(PeerInfo::parse(value, 1)) : value);
    }

   private:
    const std::function<std::string(PeerInfo)>& change_;
  };
  ThreadRanks ranks(2);
  ForgingStore store(changed);
  return ranks.run([&](int rank) {
    ranks.world().communicator(store, rank,
                               test::group_options("tp", std::chrono::milliseconds(500)));
    return "joined";
  });
}

void expect_refused(Kind kind, const std::string& why,
                    const std::function<std::string(PeerInfo)>& changed) {
  const Ending ending = join_with_second(changed)[0];
  EXPECT_TRUE(ending.threw(kind)) << ending;
  EXPECT_TRUE(ending.says(why)) << ending;
}

TEST(Join, OtherHostsNamespacesAndUsersAreUnsupported) {
  expect_refused(Kind::kUnsupported, "another host", [](PeerInfo info) {
    info.boot_id[0] ^= 1;
    return info.serialize();
  });
  expect_refused(Kind::kUnsupported, "PID namespace", [](PeerInfo info) {
    info.pid_namespace += 1;
    return info.serialize();
  });
  expect_refused(Kind::kUnsupported, "belongs to user", [](PeerInfo info) {
    info.uid += 1;
    return info.serialize();
  });
}

TEST(Join, DisagreementOnRankSizeOrVersionIsAMismatch) {
  expect_refused(Kind::kMismatch, "believes to be rank 1 of 3", [](PeerInfo info) {
    info.size = 3;
    return info.serialize();
  });
  expect_refused(Kind::kMismatch, "believes to be rank 0", [](PeerInfo info) {
    info.rank = 0;
    return info.serialize();
  });
  expect_refused(Kind::kMismatch, "another version", [](const PeerInfo&) { return "fvd-shm-0"; });
  expect_refused(Kind::kMismatch, "malformed",
                 [](const PeerInfo& info) { return info.serialize().substr(0, 40); });
}

TEST(Join, OneProcessTwiceIsAMismatch) {
  ThreadRanks ranks(2);
  const auto endings = ranks.run([&](int rank) {
    Group::join(ranks.world().domain(0), ranks.store(), rank, 2,
                test::group_options("tp", std::chrono::milliseconds(500)));
    return "joined";
  });
  for (const Ending& ending : endings) {
    EXPECT_TRUE(ending.threw(Kind::kMismatch)) << ending;
    EXPECT_TRUE(ending.says("twice")) << ending;
  }
}

TEST(Join, ImpossibleRanksAndSizes) {
  ThreadRanks ranks(1);
  const auto kind = [&](int rank, int size) {
    return test::ending_of([&] {
      Group::join(ranks.world().domain(0), ranks.store(), rank, size, test::group_options());
      return "";
    });
  };
  EXPECT_TRUE(kind(1, 1).threw(Kind::kInvalidArgument));
  EXPECT_TRUE(kind(-1, 1).threw(Kind::kInvalidArgument));
  EXPECT_TRUE(kind(0, 0).threw(Kind::kInvalidArgument));
  EXPECT_TRUE(kind(0, 257).threw(Kind::kUnsupported));
}

TEST(Join, TheSameNameCanBeUsedAgain) {
  ThreadRanks ranks(2);
  for (int i = 0; i < 20; ++i) {  // more often than there are slots
    const auto endings = ranks.run_group([](Communicator& group) {
      group.barrier({});
      return "";
    });
    for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << i << ' ' << ending;
  }
}

TEST(Join, SizesOfStagingMayDiffer) {
  // The ranks agree on the smaller one.
  test::MemoryStore store;
  const auto network = std::make_shared<test::LocalNetwork>();
  std::vector<std::shared_ptr<Domain>> domains;
  for (const std::size_t factor : {1U, 4U}) {
    DomainOptions options = test::small_domain();
    options.staging_bytes *= factor;
    options.one_shot_bytes *= factor;
    domains.push_back(
        std::make_shared<Domain>(options, std::make_unique<test::LocalConnector>(network)));
    network->add(domains.back());
  }
  ThreadRanks threads(2);
  const auto endings = threads.run([&](int rank) {
    const auto group = make_communicator(domains[static_cast<std::size_t>(rank)], store, rank, 2,
                                         test::group_options());
    std::vector<std::int64_t> values(100000, rank + 1);
    group->all_reduce(values.data(), values.data(), values.size(), DataType::kInt64, {}, {});
    test::demand(values == std::vector<std::int64_t>(100000, 3), "the sum is right");
    return "";
  });
  for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

using ForkedJoin = test::ForkedTest;

TEST_F(ForkedJoin, ARankThatDiesAfterTheHandshakeIsNamed) {
  // Published and connected, but never active: it stops while it waits for nobody any more.
  class StopAtEnd : public test::FileStore {
   public:
    explicit StopAtEnd(const test::FileStore& store) : FileStore(store) {}
    std::vector<std::string> wait_for(const std::vector<std::string>& keys,
                                      std::chrono::milliseconds timeout) override {
      auto values = FileStore::wait_for(keys, timeout);
      if (keys.size() == 1) raise(SIGSTOP);  // where to meet rank 1
      return values;
    }
  };
  test::ForkedRanks ranks(2, [](test::ForkedRank& rank) {
    StopAtEnd store(rank.store);
    rank.join(store, test::group_options());
    return "joined";
  });
  ranks.await_stop(0);
  const auto killed = ranks.signal(0, SIGKILL);
  const auto ending = ranks.ending(1);
  EXPECT_TRUE(ending.threw(Kind::kPeerLost)) << ending;
  EXPECT_TRUE(ending.says("rank 0")) << ending;
  EXPECT_LT(test::seconds_between(killed, ending.at), 1.0);
}

}  // namespace
}  // namespace fvd::shm
