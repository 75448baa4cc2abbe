// What a peer's outbox may hold if something has written into it: every word and every record is
// checked before it is used, and the group breaks with words instead of reading or writing astray.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "shm/mail_ring.h"
#include "support/thread_ranks.h"

namespace fvd::shm {
namespace {

using test::Ending;
using test::ThreadRanks;

constexpr int kTag = 3;
constexpr std::size_t kLong = 1 << 20;      // bytes of what goes through the lane
constexpr std::uint64_t kFirstRecord = 64;  // behind the one message each has sent the other

/// Rank 1's outbox as the test may write into it: its words about rank 0 and its ring towards it.
struct Damaged {
  Outbox& outbox;

  PairWords& words() { return outbox.pairs[0]; }
  void write_record(const MessageRecord& record) {
    std::memcpy(ring_towards(outbox, 0, 2).at(kFirstRecord), &record, sizeof(record));
    words().written.store(kFirstRecord + 64, std::memory_order_seq_cst);
  }
};

void exchange_one(Communicator& group) {
  const float mine = 1;
  float got = 0;
  const int other = 1 - group.rank();
  const auto sent = group.send(contiguous_block(static_cast<const void*>(&mine), 4),
                               DataType::kFloat32, other, 0, {});
  group.recv(contiguous_block(static_cast<void*>(&got), 4), DataType::kFloat32, other, 0, {})
      ->wait({});
  sent->wait({});
  group.barrier({});
}

void receive_long(Communicator& group) {
  std::vector<std::byte> got(kLong);
  group
      .recv(contiguous_block(static_cast<void*>(got.data()), kLong), DataType::kUInt8, 1, kTag, {})
      ->wait({});
}

void send_many(Communicator& group, std::size_t count, std::size_t bytes) {
  const std::vector<std::byte> data(bytes);
  std::vector<std::unique_ptr<Transfer>> sends;
  for (std::size_t i = 0; i < count; ++i) {
    if (!sends.empty() && sends.back()->done()) sends.back()->wait({});  // whichever failed says it
    sends.push_back(group.send(contiguous_block(static_cast<const void*>(data.data()), bytes),
                               DataType::kUInt8, 1, kTag, {}));
  }
  for (const auto& sending : sends) sending->wait({});
}

/// How rank 0's `use` of the group ends after `damage` was done to rank 1's outbox.
Ending use_damaged(const std::function<void(Damaged)>& damage,
                   const std::function<void(Communicator&)>& use) {
  ThreadRanks ranks(2);
  std::atomic<bool> done{false};
  const auto endings = ranks.run_group([&](Communicator& group) {
    exchange_one(group);
    if (group.rank() == 1) {
      Domain& domain = *ranks.world().domain(1);
      damage({*reinterpret_cast<Outbox*>(domain.data() + domain.layout().outbox_offset(0))});
      group.barrier({});
      while (!done.load()) std::this_thread::yield();
      return "";
    }
    group.barrier({});
    const auto ending = test::ending_of([&] {
      use(group);
      return "";
    });
    done.store(true);
    if (ending.kind) throw Error(*ending.kind, ending.words);
    return "";
  });
  EXPECT_TRUE(endings[1].returned) << endings[1];
  return endings[0];
}

void expect_damaged(const std::function<void(Damaged)>& damage,
                    const std::function<void(Communicator&)>& use) {
  const auto ending = use_damaged(damage, use);
  EXPECT_TRUE(ending.threw(Kind::kSystem)) << ending;
  EXPECT_TRUE(ending.says("rank 1 (pid ")) << ending;
  EXPECT_TRUE(ending.says("its shared memory is damaged")) << ending;
}

TEST(MailboxDamage, WordsThatCannotBe) {
  constexpr std::uint64_t kTooFar = std::uint64_t{1} << 62;
  expect_damaged([](Damaged it) { it.words().written.store(kTooFar); }, receive_long);
  expect_damaged([](Damaged it) { it.words().written.store(0); }, receive_long);
  const auto fill_ring = [](Communicator& group) { send_many(group, 4000, 4000); };
  expect_damaged([](Damaged it) { it.words().matched.store(kTooFar); }, fill_ring);
  expect_damaged([](Damaged it) { it.words().read.store(kTooFar); }, fill_ring);
  MessageRecord record{};
  record.tag = kTag;
  record.bytes = kLong;
  record.type = static_cast<std::uint64_t>(DataType::kUInt8);
  record.kind = MessageRecord::kAnnounced;
  expect_damaged(
      [&](Damaged it) {
        it.write_record(record);
        it.words().laid.store(kTooFar);
      },
      receive_long);
}

// Looked at once the lane is full, for which the message has to be announced and then asked for.
TEST(MailboxDamage, MoreTakenThanWasLaid) {
  std::atomic<Outbox*> outbox{nullptr};
  expect_damaged([&](Damaged it) { outbox = &it.outbox; },
                 [&](Communicator& group) {
                   const std::vector<std::byte> data(kLong);
                   const auto sending =
                       group.send(contiguous_block(static_cast<const void*>(data.data()), kLong),
                                  DataType::kUInt8, 1, kTag, {});
                   MessageRecord record{};
                   record.kind = MessageRecord::kWanted;
                   Damaged{*outbox}.words().taken.store(std::uint64_t{1} << 62);
                   Damaged{*outbox}.write_record(record);
                   sending->wait({});
                 });
}

TEST(MailboxDamage, RecordsThatCannotBe) {
  MessageRecord record{};
  record.tag = kTag;
  const auto expect = [&](std::uint32_t kind, std::uint64_t bytes, std::uint64_t number) {
    SCOPED_TRACE(text("kind ", kind, ", ", bytes, " bytes, number ", number));
    record.kind = kind;
    record.bytes = bytes;
    record.number = number;
    expect_damaged([&](Damaged it) { it.write_record(record); }, receive_long);
  };
  expect(0, 0, 0);
  expect(9, 0, 0);
  expect(MessageRecord::kWhole, 1000, 0);               // longer than what was written
  expect(MessageRecord::kWhole, std::uint64_t(-1), 0);  // longer than any
  expect(MessageRecord::kWanted, 0, 0);                 // of what was never announced
  expect(MessageRecord::kWanted, 0, std::uint64_t(-1));
}

TEST(MailboxDamage, ATypeThatCannotBeIsAMismatch) {
  MessageRecord record{};
  record.kind = MessageRecord::kAnnounced;
  record.tag = kTag;
  record.bytes = kLong;
  record.type = 200;
  const auto ending = use_damaged([&](Damaged it) { it.write_record(record); }, receive_long);
  EXPECT_TRUE(ending.threw(Kind::kMismatch)) << ending;
}

}  // namespace
}  // namespace fvd::shm
