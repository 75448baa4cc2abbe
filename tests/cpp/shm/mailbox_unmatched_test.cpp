// Messages nobody has asked for yet: any number of them, of any length, hold up no other.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <random>

#include "shm/mailbox.h"
#include "support/process_world.h"
#include "support/thread_ranks.h"

namespace fvd::shm {
namespace {

using test::demand;
using test::Ending;
using test::ThreadRanks;
using Numbers = std::vector<std::uint64_t>;

constexpr std::size_t kMany = test::kSanitized ? 1000 : 5000;

std::unique_ptr<Transfer> send(Communicator& group, const Numbers& data, int to, int tag) {
  return group.send(contiguous_block(static_cast<const void*>(data.data()), data.size() * 8),
                    DataType::kInt64, to, tag, {});
}
std::unique_ptr<Transfer> recv(Communicator& group, Numbers& data, int from, int tag) {
  return group.recv(contiguous_block(static_cast<void*>(data.data()), data.size() * 8),
                    DataType::kInt64, from, tag, {});
}
void receive(Communicator& group, std::size_t count, std::uint64_t number, int from, int tag) {
  Numbers got(count);
  recv(group, got, from, tag)->wait({});
  demand(got == Numbers(count, number), text("message ", number, " brought ", got[0]));
}

void expect_fine(const std::vector<Ending>& endings) {
  for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
}

/// Rank 0 starts `tags` sends of `count` numbers, and waits for them only when all are started; the
/// others get them in the order of `wanted`.
void send_all_then_receive(std::size_t count, const std::vector<int>& wanted) {
  ThreadRanks ranks(2);
  expect_fine(ranks.run_group([&](Communicator& group) {
    if (group.rank() == 1) {
      for (int tag : wanted) receive(group, count, static_cast<std::uint64_t>(tag), 0, tag);
      return "";
    }
    std::vector<Numbers> data;
    std::vector<std::unique_ptr<Transfer>> sends;
    for (std::size_t tag = 0; tag < wanted.size(); ++tag) data.emplace_back(count, tag);
    for (std::size_t tag = 0; tag < wanted.size(); ++tag)
      sends.push_back(send(group, data[tag], 1, static_cast<int>(tag)));
    for (const auto& sending : sends) sending->wait({});
    return "";
  }));
}

std::vector<int> reversed(std::size_t count) {
  std::vector<int> tags;
  for (std::size_t tag = count; tag > 0; --tag) tags.push_back(static_cast<int>(tag) - 1);
  return tags;
}

TEST(Unmatched, AHundredTagsInReverse) {
  for (std::size_t count : {1U, 1000U, 10000U}) send_all_then_receive(count, reversed(100));
}

TEST(Unmatched, ThousandsInAnyOrder) {
  std::vector<int> tags = reversed(kMany);
  std::shuffle(tags.begin(), tags.end(), std::mt19937(1));
  send_all_then_receive(1, tags);
}

TEST(Unmatched, LongOnesInReverse) { send_all_then_receive(200000, reversed(30)); }

TEST(Unmatched, ThousandsOfOneTagKeepTheirOrder) {
  ThreadRanks ranks(2);
  expect_fine(ranks.run_group([](Communicator& group) {
    // Long and short ones, so that some lie in the ring and some are only announced.
    const auto count = [](std::uint64_t number) {
      return number % 7 == 0 ? 6000 : 1 + number % 40;
    };
    if (group.rank() == 1) {
      receive(group, 1, 9, 0, 4);
      for (std::uint64_t i = 0; i < kMany; ++i) receive(group, count(i), i, 0, 3);
      return "";
    }
    std::vector<Numbers> data;
    std::vector<std::unique_ptr<Transfer>> sends;
    for (std::uint64_t i = 0; i < kMany; ++i) data.emplace_back(count(i), i);
    for (const Numbers& numbers : data) sends.push_back(send(group, numbers, 1, 3));
    const Numbers last(1, 9);
    sends.push_back(send(group, last, 1, 4));  // received before all of them
    for (const auto& sending : sends) sending->wait({});
    return "";
  }));
}

TEST(Unmatched, MessagesToOneRankDoNotHoldUpThoseToAnother) {
  ThreadRanks ranks(3);
  expect_fine(ranks.run_group([](Communicator& group) {
    constexpr std::size_t kMessages = 3000;
    if (group.rank() == 0) {
      const Numbers data(1, 7);
      std::vector<std::unique_ptr<Transfer>> sends;
      for (std::size_t i = 0; i < kMessages; ++i) sends.push_back(send(group, data, 1, 0));
      sends.push_back(send(group, data, 2, 0));
      for (const auto& sending : sends) sending->wait({});
    } else if (group.rank() == 1) {
      receive(group, 1, 8, 2, 0);  // which rank 2 sends once it has rank 0's
      for (std::size_t i = 0; i < kMessages; ++i) receive(group, 1, 7, 0, 0);
    } else {
      receive(group, 1, 7, 0, 0);
      const Numbers data(1, 8);
      send(group, data, 1, 0)->wait({});
    }
    return "";
  }));
}

TEST(Unmatched, AllSendThousandsToAllBeforeTheyReceive) {
  ThreadRanks ranks(3);
  expect_fine(ranks.run_group([](Communicator& group) {
    constexpr std::size_t kMessages = test::kSanitized ? 300 : 3000;
    std::vector<Numbers> data;
    for (std::size_t i = 0; i < kMessages; ++i) data.emplace_back(1 + i % 100, i);
    std::vector<std::unique_ptr<Transfer>> sends;
    for (const Numbers& numbers : data) {
      for (int to = 0; to < group.size(); ++to) {
        if (to != group.rank()) sends.push_back(send(group, numbers, to, 0));
      }
    }
    for (int from = 0; from < group.size(); ++from) {
      if (from == group.rank()) continue;
      for (std::size_t i = 0; i < kMessages; ++i) receive(group, 1 + i % 100, i, from, 0);
    }
    for (const auto& sending : sends) sending->wait({});
    return "";
  }));
}

TEST(Unmatched, ReceivesPostedBeforeGetThemWithoutBeingWaitedFor) {
  ThreadRanks ranks(2);
  expect_fine(ranks.run_group([](Communicator& group) {
    std::vector<Numbers> data(kMany, Numbers(2));
    std::vector<std::unique_ptr<Transfer>> transfers;
    for (std::size_t i = 0; i < kMany; ++i) {
      const std::size_t tag = group.rank() == 0 ? i : kMany - 1 - i;
      if (group.rank() == 0) data[tag] = Numbers(2, tag);
      transfers.push_back(group.rank() == 0 ? send(group, data[tag], 1, static_cast<int>(tag))
                                            : recv(group, data[tag], 0, static_cast<int>(tag)));
    }
    for (const auto& transfer : transfers) transfer->wait({});
    for (std::size_t tag = 0; tag < kMany; ++tag)
      demand(data[tag] == Numbers(2, tag), text("tag ", tag));
    return "";
  }));
}

TEST(Unmatched, ASendThatTheReceiverHasNotHeardOfMayBeGivenUp) {
  ThreadRanks ranks(2);
  expect_fine(ranks.run_group([](Communicator& group) {
    if (group.rank() == 0) {
      // Nobody reads at the other end, so the ring is full of announcements at some time.
      std::vector<Numbers> data(3000, Numbers(6000, 1));
      std::vector<std::unique_ptr<Transfer>> sends;
      for (const Numbers& numbers : data) sends.push_back(send(group, numbers, 1, 0));
      sends.pop_back();
      group.barrier({});
      for (const auto& sending : sends) sending->wait({});
    } else {
      group.barrier({});
      for (std::size_t i = 0; i < 2999; ++i) receive(group, 6000, 1, 0, 0);
    }
    group.barrier({});
    return "";
  }));
}

class Outboxes : public test::ForkedTest {};

/// Puts something else in the place of the segment's descriptor: nothing can be reserved any more.
void take_memory_away(const Domain& domain) {
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  FVD_SYS_CHECK(dup2(null, domain.self()->data_segment.fd()), "dup2");
}

void expect_both_are_told(test::ForkedRanks& ranks) {
  const auto endings = ranks.endings();
  for (const Ending& ending : endings) {
    EXPECT_TRUE(ending.threw(Kind::kSystem)) << ending;
    EXPECT_TRUE(ending.says("reserving")) << ending;
  }
  EXPECT_LT(test::seconds_between(endings[0].at, endings[1].at), 3);
}

TEST_F(Outboxes, WithoutMemoryForItTheOthersAreTold) {
  test::ForkedRanks ranks(2, [](test::ForkedRank& rank) {
    const auto group = rank.join();
    Numbers data(1);
    if (rank.rank == 1) {
      recv(*group, data, 0, 0)->wait({});
    } else {
      take_memory_away(*rank.domain);
      send(*group, data, 1, 0)->wait({});
    }
    return "";
  });
  expect_both_are_told(ranks);
}

TEST_F(Outboxes, WithoutMemoryForARingTheOthersAreTold) {
  test::ForkedRanks ranks(2, [](test::ForkedRank& rank) {
    const auto group = rank.join();
    Numbers data(1);
    if (rank.rank == 1) {
      recv(*group, data, 0, 0)->wait({});
    } else {
      const auto opens = recv(*group, data, 1, 0);
      take_memory_away(*rank.domain);
      const Numbers other(1);
      send(*group, other, 1, 0)->wait({});
    }
    return "";
  });
  expect_both_are_told(ranks);
}

TEST_F(Outboxes, NobodyTouchesOneThatIsNotOpen) {
  test::ForkedRanks ranks(2, [](test::ForkedRank& rank) {
    const auto group = rank.join();
    const auto blocks = [&] {
      struct stat status {};
      FVD_SYS_CHECK(fstat(rank.domain->self()->data_segment.fd(), &status), "fstat");
      return status.st_blocks;
    };
    const auto before = blocks();
    group->barrier({});
    Numbers data(1);
    if (rank.rank == 0) {
      const auto receiving = recv(*group, data, 1, 0);
      for (int look = 0; look < 20; ++look) {
        demand(!receiving->done(), "nothing was sent");
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      group->barrier({});
      receiving->wait({});
    } else {
      group->barrier({});
      demand(blocks() == before, "the other rank's looks took memory of this one");
      send(*group, data, 0, 0)->wait({});
    }
    return "";
  });
  EXPECT_EQ(ranks.failures(), "");
}

}  // namespace
}  // namespace fvd::shm
