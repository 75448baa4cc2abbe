// Messages and receives that find each other, in whatever order they come.
#include "shm/match_table.h"

#include <gtest/gtest.h>

#include "comm/communicator.h"

namespace fvd::shm {
namespace {

constexpr int kAny = Communicator::kAnySource;

std::shared_ptr<Receiving> receive(int source, int tag) {
  auto receiving = std::make_shared<Receiving>();
  receiving->peer = source;
  receiving->tag = tag;
  return receiving;
}

Arrived announced(int source, int tag, std::uint64_t number) {
  return {source, tag, number, 0, DataType::kUInt8, nullptr, 0};
}

TEST(MatchTable, TheOldestMessageOfASourceAndTag) {
  MatchTable table(3);
  table.keep(announced(1, 5, 0));
  table.keep(announced(2, 5, 1));
  table.keep(announced(1, 5, 2));
  table.keep(announced(1, 6, 3));
  EXPECT_FALSE(table.take_message(0, 5));
  EXPECT_EQ(table.take_message(1, 6)->number, 3U);
  EXPECT_EQ(table.take_message(1, 5)->number, 0U);
  EXPECT_EQ(table.take_message(1, 5)->number, 2U);
  EXPECT_FALSE(table.take_message(1, 5));
  EXPECT_EQ(table.take_message(kAny, 5)->number, 1U);
  EXPECT_FALSE(table.take_message(kAny, 5));
}

TEST(MatchTable, AnySourceGetsWhatCameFirst) {
  MatchTable table(3);
  table.keep(announced(2, 5, 0));
  table.keep(announced(0, 5, 1));
  table.keep(announced(2, 5, 2));
  for (std::uint64_t number : {0U, 1U, 2U}) EXPECT_EQ(table.take_message(kAny, 5)->number, number);
}

TEST(MatchTable, TheOldestReceiveWhetherOfOneSourceOrAny) {
  MatchTable table(3);
  const auto first = receive(kAny, 5), second = receive(1, 5), third = receive(kAny, 5);
  const auto other_tag = receive(kAny, 6);
  for (const auto& receiving : {first, second, third, other_tag}) table.post(receiving);
  EXPECT_EQ(table.take_receive(1, 5), first);
  EXPECT_EQ(table.take_receive(2, 5), third);
  EXPECT_EQ(table.take_receive(2, 5), nullptr);
  EXPECT_EQ(table.take_receive(1, 5), second);
  EXPECT_EQ(table.take_receive(1, 5), nullptr);
  EXPECT_EQ(table.take_receive(0, 6), other_tag);
}

TEST(MatchTable, AWithdrawnReceiveGetsNothing) {
  MatchTable table(2);
  const auto first = receive(1, 5), second = receive(1, 5);
  table.post(first);
  table.post(second);
  table.withdraw(*first);
  table.withdraw(*first);
  EXPECT_EQ(table.take_receive(1, 5), second);
  EXPECT_EQ(table.take_receive(1, 5), nullptr);
}

TEST(MatchTable, ClearForgetsBoth) {
  MatchTable table(2);
  table.post(receive(1, 5));
  table.keep(announced(1, 6, 0));
  table.clear();
  EXPECT_EQ(table.take_receive(1, 5), nullptr);
  EXPECT_FALSE(table.take_message(kAny, 6));
}

}  // namespace
}  // namespace fvd::shm
