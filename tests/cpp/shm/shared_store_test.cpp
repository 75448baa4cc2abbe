// A store several processes map: what it answers, when it is full, damaged, foreign or left by a
// process that died inside it.
#include "shm/shared_store.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <cstring>
#include <thread>
#include <vector>

#include "comm/prefixed_store.h"
#include "shm/meetings.h"
#include "support/ending.h"
#include "support/process_world.h"

namespace fvd::shm {
namespace {

using std::chrono::milliseconds;
using test::ending_of;

std::shared_ptr<SharedStore> of_this_process() {
  return SharedStore::create(SegmentKind::kProcessLocal);
}

TEST(SharedStore, AnswersWhatWasSet) {
  const auto store = of_this_process();
  EXPECT_FALSE(store->has("a"));
  store->set("a", "1");
  store->set("b", std::string(3, '\0'));
  store->set("empty", "");
  EXPECT_EQ(store->wait_for({"b", "a", "empty"}, milliseconds(0)),
            (std::vector<std::string>{std::string(3, '\0'), "1", ""}));
  store->set("a", "a longer value than before");
  store->set("b", "");
  EXPECT_EQ(store->wait_for({"a", "b"}, milliseconds(0)),
            (std::vector<std::string>{"a longer value than before", ""}));
  store->remove("a");
  store->remove("never set");
  EXPECT_FALSE(store->has("a"));
  EXPECT_TRUE(store->has("b"));
}

TEST(SharedStore, Counts) {
  const auto store = of_this_process();
  EXPECT_EQ(store->add("n", 1), 1);
  EXPECT_EQ(store->add("n", 41), 42);
  EXPECT_EQ(store->add("n", -50), -8);
  EXPECT_EQ(store->add("m", 0), 0);
}

TEST(SharedStore, NamesTheKeysThatDidNotCome) {
  const auto store = of_this_process();
  store->set("here", "");
  const auto ending = ending_of([&] {
    store->wait_for({"here", "x", "y"}, milliseconds(5));
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kTimeout)) << ending;
  EXPECT_TRUE(ending.says("missing in the store: \"x\", \"y\"")) << ending;
}

TEST(SharedStore, TakesBackWhatWasRemoved) {
  const auto store = of_this_process();
  const std::string large(1000, 'x');
  for (int i = 0; i < 2000; ++i) {
    store->set("kept" + std::to_string(i % 7), large + std::to_string(i));
    store->set("gone" + std::to_string(i), large);
    store->remove("gone" + std::to_string(i));
  }
  EXPECT_EQ(store->wait_for({"kept6"}, milliseconds(0)).at(0), large + "1994");
}

TEST(SharedStore, SaysWhenItIsFullAndGoesOn) {
  const auto store = of_this_process();
  const auto ending = ending_of([&] {
    for (int i = 0;; ++i) store->set(std::to_string(i), std::string(10000, 'x'));
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kSystem)) << ending;
  EXPECT_TRUE(ending.says("is full: ")) << ending;
  EXPECT_TRUE(ending.says("of 262144 bytes are used")) << ending;
  store->remove("3");
  store->set("more", std::string(9000, 'y'));
  EXPECT_TRUE(store->has("more"));
  EXPECT_TRUE(store->has("20"));
}

TEST(SharedStore, HoldsWhatTheLargestGroupWrites) {
  const auto store = of_this_process();
  for (int rank = 0; rank < 256; ++rank) {
    store->set("split/123/456/shm/1/info/" + std::to_string(rank), std::string(400, 'x'));
    store->add("split/123/456/shm/joinings/" + std::to_string(rank), 1);
  }
}

TEST(SharedStore, ThreadsMeetInIt) {
  const auto store = of_this_process();
  constexpr int kThreads = 4;
  constexpr int kRounds = 200;
  std::vector<std::thread> threads;
  std::vector<test::Ending> endings(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      endings[static_cast<std::size_t>(t)] = ending_of([&] {
        for (int round = 0; round < kRounds; ++round) {
          const std::string prefix = std::to_string(round) + "/";
          store->set(prefix + std::to_string(t), std::string(100, static_cast<char>('a' + t)));
          std::vector<std::string> keys;
          for (int other = 0; other < kThreads; ++other)
            keys.push_back(prefix + std::to_string(other));
          const auto values = store->wait_for(keys, std::chrono::seconds(20));
          for (int other = 0; other < kThreads; ++other) {
            test::demand(values[static_cast<std::size_t>(other)] ==
                             std::string(100, static_cast<char>('a' + other)),
                         text("round ", round, " of ", other));
          }
          if (store->add(prefix + "read", 1) == kThreads) {
            for (const auto& key : keys) store->remove(key);
            store->remove(prefix + "read");
          }
        }
        return "";
      });
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

TEST(SharedStore, RefusesAnAddressThatIsNone) {
  const std::string good = SharedStore::create()->address().serialize();
  EXPECT_EQ(good.size(), 128U);
  EXPECT_EQ(SharedStoreAddress::parse(good).serialize(), good);
  std::vector<std::string> wrong = {"", good.substr(1), good + "x", std::string(128, '\0'),
                                    std::string(128, 'x')};
  wrong.push_back(good);
  wrong.back()[55] = 'x';  // the boot id does not end
  for (const auto& bytes : wrong) {
    const auto ending = ending_of([&] {
      SharedStoreAddress::parse(bytes);
      return "";
    });
    EXPECT_TRUE(ending.threw(Kind::kInvalidArgument)) << ending;
  }
}

TEST(SharedStore, RefusesAnotherHostNamespaceUserAndProcess) {
  const auto store = SharedStore::create();
  const auto attach = [&](auto&& change) {
    SharedStoreAddress address = store->address();
    change(address);
    return ending_of([&] {
      SharedStore::attach(address);
      return "attached";
    });
  };
  EXPECT_TRUE(attach([](auto&) {}).returned);
  auto ending = attach([](auto& address) { address.boot_id[0] ^= 1; });
  EXPECT_TRUE(ending.threw(Kind::kInvalidArgument) && ending.says("on another host")) << ending;
  ending = attach([](auto& address) { ++address.pid_namespace; });
  EXPECT_TRUE(ending.threw(Kind::kInvalidArgument) && ending.says("PID namespace")) << ending;
  ending = attach([](auto& address) { ++address.uid; });
  EXPECT_TRUE(ending.threw(Kind::kInvalidArgument) && ending.says("belongs to user")) << ending;
  ending = attach([](auto& address) { ++address.start_time; });
  EXPECT_TRUE(ending.threw(Kind::kPeerLost) && ending.says("has ended")) << ending;
  ending = attach([](auto& address) { address.fd = 1 << 20; });
  EXPECT_TRUE(ending.threw(Kind::kPeerLost) && ending.says("has closed it")) << ending;
  ending = attach([](auto& address) { ++address.id[1]; });
  EXPECT_TRUE(ending.threw(Kind::kPeerLost) && ending.says("something else")) << ending;
}

TEST(SharedStore, APrefixMakesManyOfOne) {
  const auto store = of_this_process();
  PrefixedStore one(store, "one/");
  PrefixedStore two(store, "two/");
  one.set("key", "1");
  two.set("key", "2");
  EXPECT_EQ(one.wait_for({"key"}, milliseconds(0)).at(0), "1");
  EXPECT_EQ(store->wait_for({"two/key"}, milliseconds(0)).at(0), "2");
  EXPECT_EQ(one.add("n", 2) + two.add("n", 3), 5);
  one.remove("key");
  EXPECT_FALSE(one.has("key"));
  EXPECT_TRUE(two.has("key"));
}

TEST(SharedStore, ServesAnyNumberOfGroupsThatTakeBackWhatTheyWrote) {
  const auto store = of_this_process();
  for (int group = 0; group < 2000; ++group) {
    PrefixedStore part(store, "split/" + std::to_string(group) + "/");
    EXPECT_EQ(part.add("joinings", 1), 1);
    part.set("info", std::string(400, 'x'));
    part.set("removed", "");
    part.remove("removed");
    part.remove_written();
    EXPECT_FALSE(part.has("info"));
  }
}

TEST(Meetings, AreFoundUntilTheyAreClosed) {
  const std::string id = create_meeting();
  open_meeting(id)->set("a", "1");
  EXPECT_TRUE(open_meeting(id)->has("a"));
  EXPECT_EQ(name_of_meeting(id).substr(0, 5), "nccl-");
  close_meeting(id);
  close_meeting(id);
  const auto ending = ending_of([&] {
    open_meeting(id);
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kPeerLost)) << ending;
}

class ForkedStore : public test::ForkedTest {};

TEST_F(ForkedStore, ProcessesMeetByTheId) {
  const std::string id = create_meeting();
  test::ForkedRanks ranks(4, [&id](test::ForkedRank& rank) -> std::string {
    const auto store = open_meeting(id);  // the parent's, though the child has its list
    auto group = rank.join(*store, test::group_options("met"));
    group->barrier({});
    return "";
  });
  EXPECT_EQ(ranks.failures(), "");
  close_meeting(id);
}

TEST_F(ForkedStore, AChildCannotUseItsParentsObject) {
  const auto store = SharedStore::create();
  test::ForkedRanks ranks(1, [&](test::ForkedRank&) -> std::string {
    const auto ending = ending_of([&] {
      store->set("a", "1");
      return "";
    });
    test::demand(ending.threw(Kind::kAborted) && ending.says("forked"), ending.words);
    return "";
  });
  EXPECT_EQ(ranks.failures(), "");
}

TEST_F(ForkedStore, ADeathInsideIsNoticed) {
  const auto store = SharedStore::create();
  const auto address = store->address();
  test::ForkedRanks ranks(1, [&](test::ForkedRank&) -> std::string {
    // As a rank that dies in the middle of a call: the mutex follows magic and id.
    const int fd = open(text("/proc/", address.pid, "/fd/", address.fd).c_str(), O_RDWR);
    const Segment segment = Segment::attach(fd, SharedStore::kBytes, true);
    pthread_mutex_lock(reinterpret_cast<pthread_mutex_t*>(segment.data() + 32));
    _exit(0);
  });
  ranks.failures();
  for (int i = 0; i < 2; ++i) {
    const auto ending = ending_of([&] {
      store->has("a");
      return "";
    });
    EXPECT_TRUE(ending.threw(Kind::kSystem)) << ending;
    EXPECT_TRUE(ending.says("half written by a process that died")) << ending;
  }
}

}  // namespace
}  // namespace fvd::shm
