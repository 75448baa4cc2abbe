// A ring used wrongly, used in place, and used for very long.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "support/ending.h"
#include "support/ring_world.h"

namespace fvd::shm {
namespace {

using namespace test;
using std::chrono::milliseconds;

TEST(Ring, TwoThreadsInOneEndAreToldSo) {
  Ring ring(1);
  std::thread waiting([&] {
    Ending first;
    do {  // until the other is outside
      first = ending_of([&] { return read(*ring.readers[0], in_time()).at(0); });
    } while (first.threw(Kind::kInvalidArgument));
    EXPECT_EQ(first.words, "x");
  });
  Ending second;
  do {  // until the other is inside
    std::this_thread::sleep_for(milliseconds(5));
    second = ending_of([&] {
      read(*ring.readers[0], within(milliseconds(0)));
      return "";
    });
  } while (second.threw(Kind::kTimeout));
  EXPECT_TRUE(second.threw(Kind::kInvalidArgument) && second.says("another thread")) << second;
  write(ring.writer, {"x"}, in_time());
  waiting.join();
}

TEST(Ring, AnEndMayBeClosedWhileItIsUsed) {
  for (const bool closes_writer : {false, true}) {
    Ring ring(1);
    Ending reader;
    Ending writer;
    std::thread reading([&] {
      reader = ending_of([&] {
        for (std::uint32_t k = 0;; ++k) {
          demand(read(*ring.readers[0], in_time()) == message(k, {900, k % 7}), text(k));
        }
        return "";
      });
    });
    std::thread writing([&] {
      writer = ending_of([&] {
        for (std::uint32_t k = 0;; ++k) write(ring.writer, message(k, {900, k % 7}), in_time());
        return "";
      });
    });
    std::this_thread::sleep_for(milliseconds(50));
    closes_writer ? ring.writer.close() : ring.readers[0]->close();
    reading.join();
    writing.join();
    EXPECT_TRUE(reader.threw(closes_writer ? Kind::kPeerLost : Kind::kAborted)) << reader;
    EXPECT_TRUE(writer.threw(closes_writer ? Kind::kAborted : Kind::kPeerLost)) << writer;
  }
}

TEST(Ring, AnEndClosedBetweenTwoCallsIsNotTakenForOneInUse) {
  for (int round = 0; round < 300; ++round) {
    Ring ring(1);
    std::atomic<int> calls{0};
    Ending last;
    std::thread reading([&] {
      do {
        last = ending_of([&] {
          read(*ring.readers[0], within(milliseconds(0)));
          return "";
        });
        ++calls;
      } while (last.threw(Kind::kTimeout));
    });
    while (calls == 0) std::this_thread::yield();
    ring.readers[0]->close();
    reading.join();
    EXPECT_TRUE(last.threw(Kind::kAborted)) << last;
  }
}

TEST(Ring, ALentSlotIsGivenBackWhileTheReaderIsClosed) {
  for (int round = 0; round < 300; ++round) {
    Ring ring(1);
    ring.writer.begin_raw(soon());
    ring.writer.end_raw(true);
    ring.readers[0]->begin_raw(soon());
    std::atomic<bool> go{false};
    std::thread closing([&] {
      go = true;
      ring.readers[0]->close();
    });
    while (!go) std::this_thread::yield();
    EXPECT_NO_THROW(ring.readers[0]->end_raw());
    closing.join();
  }
}

TEST(Ring, EachReaderIsClaimedOnce) {
  Ring ring(2);
  EXPECT_TRUE(ending_of([&] {
                ring.attach(1);
                return "";
              }).says("reader 1 is process"));
  for (const int number : {-1, 2}) {
    EXPECT_TRUE(ending_of([&] {
                  ring.attach(number);
                  return "";
                }).says("has the readers 0 to 1"));
  }
}

TEST(Ring, WholeSlotsInPlace) {
  Ring ring(1, 2);
  for (int k = 0; k < 5; ++k) {
    const auto chunk = ring.writer.begin_raw(soon());
    ASSERT_EQ(chunk.size(), kSlotBytes);
    std::memset(chunk.data(), 'a' + k, chunk.size());
    EXPECT_TRUE(ending_of([&] {
                  write(ring.writer, {"x"}, soon());
                  return "";
                }).threw(Kind::kInvalidArgument));
    ring.writer.end_raw(true);
    const auto seen = ring.readers[0]->begin_raw(soon());
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(seen.data()), seen.size()),
              std::string(kSlotBytes, static_cast<char>('a' + k)));
    ring.readers[0]->end_raw();
  }
  ring.writer.begin_raw(soon());
  ring.writer.end_raw(false);
  write(ring.writer, {"parts"}, soon());
  EXPECT_TRUE(ending_of([&] {
                ring.readers[0]->begin_raw(soon());
                return "";
              }).says("take it by dequeue"));
  EXPECT_EQ(read(*ring.readers[0], soon()), Message{"parts"});
  ring.writer.begin_raw(soon());
  ring.writer.end_raw(true);
  EXPECT_TRUE(ending_of([&] {
                read(*ring.readers[0], soon());
                return "";
              }).says("take it by acquire_read"));
}

TEST(Ring, AReaderClosedWhileItHoldsASlotKeepsItUntilItLetsGo) {
  for (const bool lets_go : {true, false}) {
    Ring ring(1, 2);
    ring.writer.begin_raw(soon());
    ring.writer.end_raw(true);
    write(ring.writer, {"x"}, soon());
    const auto seen = ring.readers[0]->begin_raw(soon());
    std::thread([&] { ring.readers[0]->close(); }).join();
    const std::string before(reinterpret_cast<const char*>(seen.data()), seen.size());
    EXPECT_TRUE(ending_of([&] {
                  write(ring.writer, {std::string(kSlotBytes, 'y')}, soon());
                  return "";
                }).threw(Kind::kTimeout));
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(seen.data()), seen.size()), before);
    if (lets_go) {
      ring.readers[0]->end_raw();
    } else {
      ring.readers.clear();
    }
    EXPECT_TRUE(ending_of([&] {
                  write(ring.writer, {"z"}, soon());
                  return "";
                }).says("every reader has closed"));
    if (lets_go) {
      EXPECT_TRUE(ending_of([&] {
                    ring.readers[0]->begin_raw(soon());
                    return "";
                  }).threw(Kind::kAborted));
    }
  }
}

TEST(Ring, WordsSomebodyScribbledOverAreAnError) {
  Ring ring(1);
  ring.control().reader[0].taken.store(std::uint64_t{1} << 60);
  const Ending ending = ending_of([&] {
    for (int k = 0; k < 5; ++k) write(ring.writer, {"x"}, soon());
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kMismatch) && ending.says("has written into")) << ending;
}

TEST(Ring, ThePositionInTheStreamWrapsAround) {
  if (test::kSanitized) GTEST_SKIP() << "a sanitizer has no room for so large a mapping";
  // Nothing but the chunks' address space is large: 2^20 of them are 2^64 bytes of stream.
  Ring ring(1, 1, (std::uint64_t{1} << 44) - 4 * kPageBytes);
  for (std::uint32_t k = 0; k < (std::uint32_t{1} << 20) + 10; ++k) {
    const std::span<const std::byte> part = std::as_bytes(std::span(&k, 1));
    ring.writer.write({&part, 1}, soon());
    const auto got = ring.readers[0]->read(soon());
    ASSERT_EQ(std::memcmp(got.at(0).data.get(), &k, sizeof(k)), 0) << k;
  }
}

TEST(Ring, SizesThatCannotBe) {
  struct Sizes {
    std::uint64_t readers, slots, slot_bytes;
  };
  for (const Sizes& sizes :
       {Sizes{0, 4, 256}, Sizes{257, 4, 256}, Sizes{1, 0, 256}, Sizes{1, 65537, 256},
        Sizes{1, 4, 63}, Sizes{1, 4, ~std::uint64_t{0}}, Sizes{1, 65536, std::uint64_t{1} << 40}}) {
    const Ending ending = ending_of([&] {
      RingMemory::create({"sizes", sizes.readers, sizes.slots, sizes.slot_bytes});
      return "";
    });
    EXPECT_TRUE(ending.threw(Kind::kInvalidArgument)) << ending;
  }
}

}  // namespace
}  // namespace fvd::shm
