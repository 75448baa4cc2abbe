// A ring between processes: attaching through /proc, deaths in each state, forks, and what is left.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <thread>

#include "shm/ring.h"
#include "support/process_world.h"

namespace fvd::shm {
namespace {

using std::chrono::milliseconds;
using test::Ending;
using test::ending_of;
using test::ForkedRank;
using test::ForkedRanks;

constexpr std::chrono::microseconds kSpin{20};
constexpr double kNoticed = test::kSanitized ? 5.0 : 1.0;  // seconds; 0.1 are promised

RingCall within(milliseconds time) { return {Clock::now() + time, nullptr}; }
RingCall in_time() { return within(std::chrono::seconds(60)); }

/// Rank 0 writes; ranks 1 and up are the readers 0 and up.
std::shared_ptr<RingMemory> create(ForkedRank& rank, std::uint64_t slots = 4,
                                   std::uint64_t slot_bytes = 4096) {
  auto memory =
      RingMemory::create({"forked", static_cast<std::uint64_t>(rank.size - 1), slots, slot_bytes});
  rank.store.set("address", memory->address().serialize());
  return memory;
}

RingAddress address(ForkedRank& rank) {
  return RingAddress::parse(rank.store.wait_for({"address"}, std::chrono::seconds(30)).at(0));
}

std::unique_ptr<RingReader> attach(ForkedRank& rank) {
  return std::make_unique<RingReader>(RingMemory::attach(address(rank)), rank.rank - 1, kSpin);
}

void write(RingWriter& writer, const std::string& part, const RingCall& call) {
  const std::span<const std::byte> span = std::as_bytes(std::span(part));
  writer.write({&span, 1}, call);
}

std::string read(RingReader& reader, const RingCall& call) {
  const auto parts = reader.read(call);
  return {reinterpret_cast<const char*>(parts.at(0).data.get()), parts.at(0).bytes};
}

std::string long_message(int number) {
  std::string words(100000 + static_cast<std::size_t>(number), '\0');
  for (std::size_t i = 0; i < words.size(); ++i) {
    words[i] = static_cast<char>(i * 31 + static_cast<std::size_t>(number));
  }
  return words;
}

class ForkedRing : public test::ForkedTest {};

TEST_F(ForkedRing, ThreeProcessesGetEveryMessage) {
  ForkedRanks ranks(4, [](ForkedRank& rank) -> std::string {
    constexpr int kMessages = test::kSanitized ? 50 : 500;
    if (rank.rank == 0) {
      RingWriter writer(create(rank), kSpin);
      for (int k = 0; k < kMessages; ++k) write(writer, long_message(k), in_time());
      for (int k = 0; k < kMessages; ++k) write(writer, std::to_string(k), in_time());
      rank.await("read1");
      rank.await("read2");
      rank.await("read3");
      return "";
    }
    const auto reader = attach(rank);
    for (int k = 0; k < kMessages; ++k) {
      test::demand(read(*reader, in_time()) == long_message(k), text("long message ", k));
    }
    for (int k = 0; k < kMessages; ++k) {
      test::demand(read(*reader, in_time()) == std::to_string(k), text("short message ", k));
    }
    rank.say(text("read", rank.rank));
    return "";
  });
  EXPECT_EQ(ranks.failures(), "");
}

TEST_F(ForkedRing, AKilledReaderEndsTheWaitsOfAllOthers) {
  ForkedRanks ranks(3, [](ForkedRank& rank) -> std::string {
    if (rank.rank == 0) {
      RingWriter writer(create(rank), kSpin);
      for (int k = 0; k < 4; ++k) write(writer, "x", in_time());
      rank.say("full");
      write(writer, "no room", in_time());
    } else {
      const auto reader = attach(rank);
      rank.await("full");
      if (rank.rank == 1) {
        rank.say("idle");
        rank.await("never");
      }
      for (int k = 0; k < 5; ++k) read(*reader, in_time());
    }
    return "";
  });
  ranks.await("idle");
  usleep(50 * 1000);
  const auto killed = ranks.signal(1, SIGKILL);
  for (const int survivor : {0, 2}) {
    const Ending ending = ranks.ending(survivor);
    EXPECT_TRUE(ending.threw(Kind::kPeerLost)) << ending;
    EXPECT_TRUE(ending.says(text("reader 0 (pid ", ranks.pid(1), ")"))) << ending;
    EXPECT_LT(test::seconds_between(killed, ending.at), kNoticed) << survivor;
  }
}

TEST_F(ForkedRing, ADeadReaderIsNoticedThoughTheRingHasRoom) {
  ForkedRanks ranks(2, [](ForkedRank& rank) -> std::string {
    if (rank.rank == 1) {
      const auto reader = attach(rank);
      rank.say("attached");
      rank.await("never");
    }
    RingWriter writer(create(rank), kSpin);
    rank.await("attached");
    write(writer, "x", in_time());
    rank.say("kill it");
    rank.await("killed");
    const Ending first = ending_of([&] {
      write(writer, "y", in_time());
      return "";
    });
    test::demand(first.threw(Kind::kPeerLost), "kPeerLost at first: " + first.words);
    write(writer, "z", in_time());
    return "";
  });
  ranks.await("kill it");
  ranks.signal(1, SIGKILL);
  ranks.ending(1);
  ranks.say("killed");
  const Ending ending = ranks.ending(0);
  EXPECT_TRUE(ending.threw(Kind::kAborted) && ending.says("the queue is broken")) << ending;
}

TEST_F(ForkedRing, AKilledWriterEndsTheWaitsAndWhatItSentIsRead) {
  ForkedRanks ranks(3, [](ForkedRank& rank) -> std::string {
    if (rank.rank == 0) {
      RingWriter writer(create(rank), kSpin);
      write(writer, "testament", in_time());
      rank.say("sent");
      rank.await("never");
    }
    const auto reader = attach(rank);
    rank.await("sent");
    if (rank.rank == 1) {  // reads after the death
      rank.await("killed");
      test::demand(read(*reader, in_time()) == "testament", "the message");
    } else {
      read(*reader, in_time());
      rank.say("waiting");
    }
    read(*reader, in_time());
    return "";
  });
  ranks.await("waiting");
  usleep(50 * 1000);
  const auto killed = ranks.signal(0, SIGKILL);
  ranks.ending(0);
  ranks.say("killed");
  for (const int survivor : {1, 2}) {
    const Ending ending = ranks.ending(survivor);
    EXPECT_TRUE(ending.threw(Kind::kPeerLost)) << ending;
    EXPECT_TRUE(ending.says(text("writer (pid ", ranks.pid(0), ")"))) << ending;
    if (survivor == 2) {
      EXPECT_LT(test::seconds_between(killed, ending.at), kNoticed);
    }
  }
}

TEST_F(ForkedRing, AWriterKilledInTheMiddleOfAMessage) {
  ForkedRanks ranks(2, [](ForkedRank& rank) -> std::string {
    if (rank.rank == 0) {
      RingWriter writer(create(rank), kSpin);
      rank.await("attached");
      try {
        write(writer, long_message(1), within(milliseconds(100)));  // more than the ring
      } catch (const Error&) {
        rank.say("half");
      }
      rank.await("never");
    }
    const auto reader = attach(rank);
    rank.say("attached");
    rank.await("half");
    rank.say("kill it");
    read(*reader, in_time());
    return "";
  });
  ranks.await("kill it");
  ranks.signal(0, SIGKILL);
  const Ending ending = ranks.ending(1);
  EXPECT_TRUE(ending.threw(Kind::kPeerLost)) << ending;
}

TEST_F(ForkedRing, AStoppedReaderIsWaitedForAndNamed) {
  ForkedRanks ranks(2, [](ForkedRank& rank) -> std::string {
    if (rank.rank == 1) {
      const auto reader = attach(rank);
      raise(SIGSTOP);
      for (int k = 0; k < 5; ++k) read(*reader, in_time());
      rank.say("read");
      return "";
    }
    RingWriter writer(create(rank), kSpin);
    writer.wait_until_ready(in_time());
    rank.await("stopped");
    for (int k = 0; k < 4; ++k) write(writer, "x", in_time());
    const Ending full = ending_of([&] {
      write(writer, "x", within(milliseconds(200)));
      return "";
    });
    rank.say("timed out");
    write(writer, "x", in_time());
    rank.await("read");
    return full.words;
  });
  ranks.await_stop(1);
  ranks.say("stopped");
  ranks.await("timed out");
  ranks.signal(1, SIGCONT);
  const Ending writer = ranks.ending(0);
  EXPECT_TRUE(writer.returned && writer.says("state T (stopped")) << writer;
  EXPECT_TRUE(ranks.ending(1).returned);
}

TEST_F(ForkedRing, AForkedChildIsRefusedAndHarmless) {
  ForkedRanks ranks(1 + 1, [](ForkedRank& rank) -> std::string {
    if (rank.rank == 1) {
      const auto reader = attach(rank);
      return read(*reader, in_time());
    }
    auto writer = std::make_unique<RingWriter>(create(rank), kSpin);
    const pid_t child = fork();
    if (child == 0) {
      const Ending ending = ending_of([&] {
        write(*writer, "from the child", in_time());
        return "";
      });
      writer.reset();
      _exit(ending.threw(Kind::kAborted) && ending.says("its child") ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    test::demand(status == 0, "the child was refused");
    write(*writer, "from the parent", in_time());
    rank.await("never mind");
    return "";
  });
  const Ending reader = ranks.ending(1);
  EXPECT_EQ(reader.words, "from the parent");
  ranks.say("never mind");
  const Ending writer = ranks.ending(0);
  EXPECT_TRUE(writer.returned) << writer;
}

TEST_F(ForkedRing, OnlyTheRingInQuestionIsAttached) {
  ForkedRanks ranks(2, [](ForkedRank& rank) -> std::string {
    if (rank.rank == 0) {
      auto memory = create(rank);
      rank.await("tried");
      memory.reset();
      rank.say("closed");
      rank.await("tried again");
      return "";
    }
    const RingAddress right = address(rank);
    std::string words;
    const auto attempt = [&](const char* what, auto spoil) {
      RingAddress wrong = right;
      spoil(wrong);
      const Ending ending = ending_of([&] {
        RingMemory::attach(wrong);
        return "attached";
      });
      words += text(what, ": ", ending, "\n");
    };
    attempt("id", [](RingAddress& a) { a.id[0] ^= 1; });
    attempt("size", [](RingAddress& a) { a.slots += 1; });
    attempt("descriptor", [](RingAddress& a) { a.data_fd = 0; });
    attempt("swapped", [](RingAddress& a) { std::swap(a.data_fd, a.control_fd); });
    attempt("no descriptor", [](RingAddress& a) { a.data_fd = 999; });
    attempt("pid", [](RingAddress& a) { a.start_time += 1; });
    attempt("user", [](RingAddress& a) { a.uid += 1; });
    attempt("host", [](RingAddress& a) { a.boot_id = "another"; });
    attempt("namespace", [](RingAddress& a) { a.pid_namespace += 1; });
    RingMemory::attach(right);
    rank.say("tried");
    rank.await("closed");
    attempt("closed", [](RingAddress&) {});
    rank.say("tried again");
    return words;
  });
  const Ending ending = ranks.ending(1);
  ASSERT_TRUE(ending.returned) << ending;
  EXPECT_FALSE(ending.says("attached\"")) << ending;
  for (const char* line :
       {"id: PeerLost", "host: InvalidArgument", "namespace: InvalidArgument",
        "user: InvalidArgument", "pid: PeerLost", "no descriptor: PeerLost", "closed: PeerLost"}) {
    EXPECT_TRUE(ending.says(line)) << line << " in\n" << ending;
  }
  EXPECT_TRUE(ranks.ending(0).returned);
}

TEST_F(ForkedRing, ANonDumpableWriterIsExplained) {
  if (geteuid() == 0) GTEST_SKIP() << "the superuser may open everything";
  ForkedRanks ranks(2, [](ForkedRank& rank) -> std::string {
    if (rank.rank == 0) {
      auto memory = create(rank);
      prctl(PR_SET_DUMPABLE, 0);
      rank.say("hidden");
      rank.await("tried");
      return "";
    }
    rank.await("hidden");
    const Ending ending = ending_of([&] {
      attach(rank);
      return "";
    });
    rank.say("tried");
    return ending.words;
  });
  EXPECT_TRUE(ranks.ending(1).says("PR_SET_DUMPABLE"));
}

TEST_F(ForkedRing, NothingIsHeldAfterwards) {
  const std::size_t descriptors = test::open_descriptors();
  const std::size_t mappings = test::segment_mappings();
  for (int i = 0; i < 20; ++i) {
    RingWriter writer(RingMemory::create({"short", 2, 3, 1 << 20}), kSpin);
    const RingAddress at = writer.address();
    RingReader first(RingMemory::attach(at), 0, kSpin);
    RingReader second(RingMemory::attach(at), 1, kSpin);
    for (int k = 0; k < 5; ++k) {
      write(writer, long_message(k), in_time());
      EXPECT_EQ(read(first, in_time()), long_message(k));
      EXPECT_EQ(read(second, in_time()), long_message(k));
    }
  }
  EXPECT_EQ(test::open_descriptors(), descriptors);
  EXPECT_EQ(test::segment_mappings(), mappings);
}

TEST_F(ForkedRing, AnIdleReaderCostsNoCore) {
  RingWriter writer(RingMemory::create({"idle", 1, 4, 4096}), kSpin);
  RingReader reader(RingMemory::attach(writer.address()), 0, kSpin);
  timespec before{};
  timespec after{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &before);
  EXPECT_THROW(read(reader, within(milliseconds(1000))), Error);
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &after);
  const double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                      1e-9 * static_cast<double>(after.tv_nsec - before.tv_nsec);
  EXPECT_LT(used, test::kSanitized ? 0.2 : 0.05) << "seconds of one";
}

}  // namespace
}  // namespace fvd::shm
