// Slots: how they run out, rest and come back; staging memory; what a forked child sees.
#include "shm/domain.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/process_world.h"
#include "support/thread_ranks.h"

namespace fvd::shm {
namespace {

constexpr auto kDrained = [] { return true; };

std::shared_ptr<Domain> local_domain(std::size_t slots) {
  DomainOptions options = test::small_domain();
  options.slots = slots;
  return test::ThreadWorld(1, options).domain(0);
}

TEST(Domain, ExhaustedSlotsSayHowManyAndWhatToDo) {
  const auto domain = local_domain(3);
  for (int i = 0; i < 3; ++i) domain->take_slot();
  const auto ending = test::ending_of([&] { return std::to_string(domain->take_slot()); });
  EXPECT_TRUE(ending.threw(Kind::kSystem)) << ending;
  EXPECT_TRUE(ending.says("all 3 group slots")) << ending;
  EXPECT_TRUE(ending.says("FASTVIDEO_DIST_SLOTS")) << ending;
}

TEST(Domain, UsedSlotsRestWhileThereAreFreshOnesAndReturnOldestFirst) {
  const auto domain = local_domain(4);
  EXPECT_EQ(domain->take_slot(), 0U);
  EXPECT_EQ(domain->take_slot(), 1U);
  domain->return_slot(1, kDrained);
  domain->return_slot(0, kDrained);
  EXPECT_EQ(domain->take_slot(), 2U);
  EXPECT_EQ(domain->take_slot(), 3U);
  EXPECT_EQ(domain->take_slot(), 1U);
  EXPECT_EQ(domain->take_slot(), 0U);
}

TEST(Domain, ADrainingSlotIsKeptUntilNobodyReadsItAnyMore) {
  const auto domain = local_domain(2);
  domain->take_slot();
  domain->take_slot();
  bool drained = false;
  domain->return_slot(1, [&] { return drained; });
  EXPECT_TRUE(
      test::ending_of([&] { return std::to_string(domain->take_slot()); }).threw(Kind::kSystem));
  drained = true;
  EXPECT_EQ(domain->take_slot(), 1U);
}

TEST(Domain, AReusedSlotStartsAfresh) {
  const auto domain = local_domain(1);
  Slot& slot = *domain->slot(domain->take_slot());
  slot.lines[0].sequence = 8;
  slot.lines[1].sequence = kGaveUp;
  slot.progress.staged = slot.progress.reduced = slot.progress.consumed = 5;
  slot.progress.completed = 8;
  slot.state.epoch = 99;
  slot.state.code = State::kLeft;
  slot.state.outbox = 99;
  domain->return_slot(0, kDrained);
  ASSERT_EQ(domain->take_slot(), 0U);
  for (const Line& line : slot.lines) EXPECT_EQ(line.sequence.load(), 0);
  EXPECT_EQ(slot.progress.staged.load(), 0);
  EXPECT_EQ(slot.progress.reduced.load(), 0);
  EXPECT_EQ(slot.progress.consumed.load(), 0);
  EXPECT_EQ(slot.progress.completed.load(), 0);
  EXPECT_EQ(slot.state.epoch.load(), 0U);
  EXPECT_EQ(slot.state.code.load(), State::kJoining);
  EXPECT_EQ(slot.state.outbox.load(), 0U);
}

TEST(Domain, EveryStagingAreaCanBeWrittenToItsLastByte) {
  DomainOptions options = test::small_domain();
  options.slots = 65;  // more than one batch of slots
  const auto domain = make_domain(options);
  const Layout& layout = domain->layout();
  for (int i = 0; i < 65; ++i) domain->take_slot();
  const std::size_t last = 64;
  domain->reserve(last, Domain::Staging::kOneShot);
  domain->reserve(last, Domain::Staging::kPipeline);
  domain->reserve_outbox(last, Layout::kOutboxBytes - 1, 1);
  std::byte* data = domain->data();
  data[layout.one_shot_offset(last, 1) + Layout::kOneShotBytes - 1] = std::byte{1};
  data[layout.pipeline_offset(last) + layout.pipeline_bytes - 1] = std::byte{1};
  data[layout.outbox_offset(last) + Layout::kOutboxBytes - 1] = std::byte{1};
  EXPECT_EQ(layout.outbox_offset(last) + Layout::kOutboxBytes, layout.data_bytes());
}

TEST(Domain, MemoryIsTakenOnlyWhenUsed) {
  DomainOptions options;  // as in production: thousands of slots, gigabytes of addresses
  const auto domain = make_domain(options);
  std::size_t resident_pages = 0;
  std::size_t ignored = 0;
  std::ifstream("/proc/self/statm") >> ignored >> ignored >> resident_pages;
  EXPECT_GT(domain->layout().data_bytes(), std::size_t{8} << 30);
  EXPECT_LT(resident_pages * kPageBytes, std::size_t{1} << 30);
}

TEST(Domain, ImpossibleOptionsAreRefused) {
  const auto refused = [](auto change) {
    DomainOptions options = test::small_domain();
    change(options);
    const auto ending = test::ending_of([&] {
      make_domain(options);
      return "";
    });
    EXPECT_TRUE(ending.threw(Kind::kInvalidArgument)) << ending;
  };
  refused([](DomainOptions& o) { o.slots = 0; });
  refused([](DomainOptions& o) { o.slots = 1 << 20; });
  refused([](DomainOptions& o) { o.staging_bytes = 0; });
  refused([](DomainOptions& o) { o.one_shot_bytes = Layout::kOneShotBytes + 1; });
}

using ForkedDomain = test::ForkedTest;

/// A rank that forks while it is in a group and has done `before`; `in_child` runs in the child and
/// its parent waits for the child's exit code.
std::string failures_of_forking_rank(
    const std::function<void(Communicator&, int rank)>& before,
    const std::function<void(std::unique_ptr<Communicator>, test::ForkedRank&)>& in_child) {
  test::ForkedRanks ranks(2, [&](test::ForkedRank& rank) {
    auto communicator = rank.join();
    before(*communicator, rank.rank);
    const pid_t child = fork();
    FVD_SYS_CHECK(child, "forking a child");
    if (child == 0) {
      alarm(5);  // whatever hangs in the child ends with it
      const auto ending = test::ending_of([&] {
        in_child(std::move(communicator), rank);
        return "";
      });
      if (!ending.returned) fprintf(stderr, "in the child: %s\n", ending.words.c_str());
      _exit(ending.returned ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    test::demand(status == 0, text("the child ended well, not with wait status ", status));
    communicator->barrier({});
    return "";
  });
  return ranks.failures();
}

void barrier(Communicator& communicator, int) { communicator.barrier({}); }

TEST_F(ForkedDomain, AForkedChildCannotUseItAndIsToldWhy) {
  EXPECT_EQ(failures_of_forking_rank(barrier,
                                     [](auto communicator, test::ForkedRank& rank) {
                                       test::demand(!rank.domain->usable(), "not usable");
                                       const auto ending = test::ending_of([&] {
                                         communicator->barrier({});
                                         return "";
                                       });
                                       test::demand(ending.threw(Kind::kAborted), ending.words);
                                       test::demand(ending.says("forked child"), ending.words);
                                     }),
            "");
}

TEST_F(ForkedDomain, AForkedChildCannotJoinWithIt) {
  EXPECT_EQ(failures_of_forking_rank(barrier,
                                     [](auto, test::ForkedRank& rank) {
                                       const auto ending = test::ending_of([&] {
                                         rank.join("another");
                                         return "";
                                       });
                                       test::demand(ending.threw(Kind::kAborted), ending.words);
                                     }),
            "");
}

TEST_F(ForkedDomain, AForkedChildCanDestroyIt) {
  EXPECT_EQ(failures_of_forking_rank(barrier,
                                     [](auto communicator, test::ForkedRank& rank) {
                                       communicator.reset();
                                       rank.domain.reset();
                                     }),
            "");
}

TEST_F(ForkedDomain, AForkedChildCanDestroyItAfterTransfers) {
  const auto transfer = [](Communicator& communicator, int rank) {
    std::uint32_t word = 7;
    const auto block = contiguous_block(&word, sizeof(word));
    const auto transfer =
        rank == 0 ? communicator.send({block.data, 1, block.run_bytes, block.run_stride},
                                      DataType::kUInt32, 1, 0, {})
                  : communicator.recv(block, DataType::kUInt32, 0, 0, {});
    transfer->wait({});
  };
  EXPECT_EQ(failures_of_forking_rank(transfer,
                                     [](auto communicator, test::ForkedRank& rank) {
                                       communicator.reset();
                                       rank.domain.reset();
                                     }),
            "");
}

TEST_F(ForkedDomain, AbortInAForkedChildDoesNotReachTheGroup) {
  EXPECT_EQ(
      failures_of_forking_rank(
          barrier, [](auto communicator, test::ForkedRank&) { communicator->abort("child"); }),
      "");
}

TEST_F(ForkedDomain, AForkedChildMayStartAnew) {
  EXPECT_EQ(failures_of_forking_rank(barrier,
                                     [](auto, test::ForkedRank& rank) {
                                       rank.domain.reset();
                                       test::ScratchFolder folder;
                                       test::FileStore store(folder.path());
                                       test::ForkedRank own{0, 1, store, rank.options, nullptr};
                                       own.join()->barrier({});
                                     }),
            "");
}

}  // namespace
}  // namespace fvd::shm
