// One writer, many readers, as threads over one mapping: what arrives, who waits for whom, what a
// call that fails leaves behind.
#include <gtest/gtest.h>

#include <thread>

#include "support/ending.h"
#include "support/ring_world.h"

namespace fvd::shm {
namespace {

using namespace test;
using std::chrono::milliseconds;

TEST(Ring, EveryReaderGetsEveryMessageInOrderWhateverItsLength) {
  constexpr std::uint64_t kWord = sizeof(std::uint64_t);
  const std::vector<std::vector<std::size_t>> shapes = {
      {0},
      {1},
      {kSlotBytes - kWord},
      {kSlotBytes - kWord + 1},
      {2 * kSlotBytes - kWord},
      {0, 0, 0},
      {5, 0, 7, 0},
      {3 * kSlotBytes, 1},
      {40 * kSlotBytes},                 // ten times the ring
      std::vector<std::size_t>(100, 3),  // a table of several slots
      {(1 << 20) + 17, 9}};
  constexpr std::uint32_t kRounds = test::kSanitized ? 3 : 10;
  for (const int readers : {1, 2, 3}) {
    Ring ring(readers);
    std::vector<std::thread> threads;
    std::vector<Ending> endings(static_cast<std::size_t>(readers));
    for (int r = 0; r < readers; ++r) {
      threads.emplace_back([&, r] {
        endings[static_cast<std::size_t>(r)] = ending_of([&] {
          for (std::uint32_t k = 0; k < kRounds * shapes.size(); ++k) {
            const Message got = read(*ring.readers[static_cast<std::size_t>(r)], in_time());
            test::demand(got == message(k, shapes[k % shapes.size()]), text("message ", k));
          }
          return "";
        });
      });
    }
    const Ending writer = ending_of([&] {
      for (std::uint32_t k = 0; k < kRounds * shapes.size(); ++k) {
        write(ring.writer, message(k, shapes[k % shapes.size()]), in_time());
      }
      return "";
    });
    for (std::thread& thread : threads) thread.join();
    EXPECT_TRUE(writer.returned) << writer;
    for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
  }
}

TEST(Ring, ManySmallMessagesAtFullSpeed) {
  constexpr std::uint32_t kMessages = test::kSanitized ? 5000 : 100000;
  Ring ring(2, 3);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (auto& reader : ring.readers) {
    threads.emplace_back([&] {
      for (std::uint32_t k = 0; k < kMessages; ++k) {
        if (read(*reader, in_time()) != Message{std::to_string(k)}) ++wrong;
      }
    });
  }
  for (std::uint32_t k = 0; k < kMessages; ++k) write(ring.writer, {std::to_string(k)}, in_time());
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Ring, TheWriterIsAWholeRingAheadAndNoMore) {
  Ring ring(2);
  for (int k = 0; k < 4; ++k) write(ring.writer, {"x"}, soon());
  read(*ring.readers[0], soon());
  const Ending full = ending_of([&] {
    write(ring.writer, {"never sent"}, soon());
    return "";
  });
  EXPECT_TRUE(full.threw(Kind::kTimeout)) << full;
  for (const char* part : {"enqueue", "\"test\"", "all 4 chunks are full", "reader 1 (pid ",
                           "took 0 of 4 chunks", "may be repeated"}) {
    EXPECT_TRUE(full.says(part)) << part << " in\n" << full;
  }
  EXPECT_FALSE(full.says("reader 0 (")) << full;
  read(*ring.readers[1], soon());
  write(ring.writer, {"fifth"}, soon());
  for (int k = 0; k < 3; ++k) EXPECT_EQ(read(*ring.readers[1], soon()), Message{"x"});
  EXPECT_EQ(read(*ring.readers[1], soon()), Message{"fifth"});
}

TEST(Ring, AReaderThatFindsNothingTimesOutAndGoesOn) {
  Ring ring(1);
  const Ending empty = ending_of([&] {
    read(*ring.readers[0], soon());
    return "";
  });
  EXPECT_TRUE(empty.threw(Kind::kTimeout)) << empty;
  EXPECT_TRUE(empty.says("dequeue") && empty.says("reader 0 of 1") &&
              empty.says("nothing came from the writer (pid "))
      << empty;
  write(ring.writer, {"late"}, soon());
  EXPECT_EQ(read(*ring.readers[0], soon()), Message{"late"});
}

TEST(Ring, AMessageForReadersThatComeLater) {
  Ring ring(0 + 1);
  auto memory = RingMemory::create({"late", 1, 4, kSlotBytes, SegmentKind::kProcessLocal});
  RingWriter writer(memory, kSpin);
  write(writer, {"early"}, soon());
  EXPECT_TRUE(ending_of([&] {
                writer.wait_until_ready(soon());
                return "";
              }).says("reader 0 has not attached"));
  RingReader reader(memory, 0, kSpin);
  EXPECT_TRUE(ending_of([&] {
                reader.wait_until_ready(soon());
                return "";
              }).threw(Kind::kTimeout));
  writer.wait_until_ready(soon());
  reader.wait_until_ready(soon());
  EXPECT_EQ(read(reader, soon()), Message{"early"});
}

TEST(Ring, AMessageTheWriterGaveUpIsNeverSeen) {
  Ring ring(2);
  const Ending writer = ending_of([&] {  // six slots into four
    write(ring.writer, message(1, {6 * kSlotBytes - 100}), soon());
    return "";
  });
  EXPECT_TRUE(writer.threw(Kind::kTimeout)) << writer;
  // One reader starts on it before the next message comes, the other after.
  EXPECT_TRUE(ending_of([&] {
                read(*ring.readers[0], soon());
                return "";
              }).threw(Kind::kTimeout));
  EXPECT_TRUE(ending_of([&] {
                write(ring.writer, {"next"}, soon());
                return "";
              }).threw(Kind::kTimeout))
      << "reader 1 has not taken anything";
  std::thread reader([&] { EXPECT_EQ(read(*ring.readers[1], in_time()), Message{"next"}); });
  write(ring.writer, {"next"}, in_time());
  reader.join();
  EXPECT_EQ(read(*ring.readers[0], soon()), Message{"next"});
}

TEST(Ring, AReaderThatTimesOutInAMessageResumesIt) {
  Ring ring(1, 2);
  const Message long_one = message(7, {100, 7 * kSlotBytes, 3});
  std::atomic<bool> done{false};
  std::thread writer([&] {
    write(ring.writer, long_one, in_time());
    done = true;
  });
  Message got;
  int timeouts = 0;
  while (got.empty()) {
    try {
      got = read(*ring.readers[0], within(milliseconds(0)));
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), Kind::kTimeout);
      ++timeouts;
    }
  }
  writer.join();
  EXPECT_EQ(got, long_one);
}

TEST(Ring, WhatAClosedWriterSentIsStillRead) {
  Ring ring(1);
  write(ring.writer, {"last"}, soon());
  ring.writer.close();
  ring.writer.close();
  EXPECT_EQ(read(*ring.readers[0], soon()), Message{"last"});
  for (int i = 0; i < 2; ++i) {
    const Ending ending = ending_of([&] {
      read(*ring.readers[0], in_time());
      return "";
    });
    EXPECT_TRUE(ending.threw(Kind::kPeerLost) && ending.says("the writer closed it")) << ending;
  }
  EXPECT_TRUE(ending_of([&] {
                write(ring.writer, {"x"}, soon());
                return "";
              }).threw(Kind::kAborted));
}

TEST(Ring, AClosedReaderIsNotWaitedFor) {
  Ring ring(2);
  ring.readers[0]->close();
  for (int k = 0; k < 12; ++k) {
    write(ring.writer, {std::to_string(k)}, soon());
    EXPECT_EQ(read(*ring.readers[1], soon()), Message{std::to_string(k)});
  }
  ring.readers[1]->close();
  const Ending ending = ending_of([&] {
    write(ring.writer, {"x"}, soon());
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kPeerLost) && ending.says("every reader has closed it")) << ending;
}

TEST(Ring, ClosingAnEndWakesWhoWaitsInIt) {
  Ring ring(1);
  Ending reader;
  std::thread waiting([&] {
    reader = ending_of([&] {
      read(*ring.readers[0], in_time());
      return "";
    });
  });
  std::this_thread::sleep_for(milliseconds(20));
  ring.readers[0]->close();
  waiting.join();
  EXPECT_TRUE(reader.threw(Kind::kAborted) && reader.says("closed here")) << reader;
}

TEST(Ring, TheClosingWriterWakesItsReadersAtOnce) {
  Ring ring(3);
  std::vector<std::thread> threads;
  std::vector<Ending> endings(3);
  for (std::size_t r = 0; r < 3; ++r) {
    threads.emplace_back([&, r] {
      endings[r] = ending_of([&] {
        read(*ring.readers[r], in_time());
        return "";
      });
    });
  }
  std::this_thread::sleep_for(milliseconds(20));
  const auto closed = std::chrono::steady_clock::now();
  ring.writer.close();
  for (std::thread& thread : threads) thread.join();
  for (const Ending& ending : endings) {
    EXPECT_TRUE(ending.threw(Kind::kPeerLost)) << ending;
    EXPECT_LT(ending.at - closed, milliseconds(1000));
  }
}

TEST(Ring, AnInterruptLeavesItUsable) {
  Ring ring(1);
  const std::function<void()> interrupt = [] { throw std::runtime_error("Ctrl-C"); };
  RingCall call = in_time();
  call.interrupt = &interrupt;
  EXPECT_TRUE(ending_of([&] {
                read(*ring.readers[0], call);
                return "";
              }).says("Ctrl-C"));
  write(ring.writer, {"after"}, soon());
  EXPECT_EQ(read(*ring.readers[0], soon()), Message{"after"});
}

}  // namespace
}  // namespace fvd::shm
