// Ranks that die, disagree, come late or give up while they write into each other's outputs.
#include <optional>

#include "nccl/push.h"
#include "nccl/push_test.h"

namespace fvd::test {
namespace {

using PushFailureTest = PushTest;

/// Holds the null stream of the calling thread's device until it is let go.
class Held {
 public:
  Held() {
    enqueue_on(nullptr, [go = go_] {
      while (!*go) std::this_thread::sleep_for(milliseconds{1});
    });
  }
  ~Held() { let_go(); }
  void let_go() { *go_ = true; }

 private:
  std::shared_ptr<std::atomic<bool>> go_ = std::make_shared<std::atomic<bool>>(false);
};

TEST_F(PushFailureTest, ADeviceThatDoesNotComeIsNamedAndNothingIsWritten) {
  const auto endings = run_pushing(2, [](Communicator& g, int rank) {
    DeviceInts out(count_of(g));
    demand(push(g, {out.block()}).empty(), "pushed");
    synchronize();
    std::fill_n(out.data(), count_of(g), -1);
    g.barrier({});
    std::optional<Held> held;
    if (rank == 1) held.emplace();
    Call call;
    call.timeout = milliseconds{rank == 0 ? 300 : 60000};
    demand(push(g, {out.block()}, call).empty(), "enqueued");
    const auto ending = broken_within(g, 2 * kSoon);
    if (held) held->let_go();
    synchronize();
    demand(out.values() == std::vector(count_of(g), -1), "nothing was written");
    if (!ending.returned) g.check();
    return std::string("not found");
  });
  EXPECT_TRUE(endings[0].threw(Kind::kTimeout)) << endings[0];
  for (const char* part : {"all_to_all", "seq 3", "of 0.3 s", "all ranks have called it",
                           "the device gave up waiting for that of rank 1"})
    EXPECT_TRUE(endings[0].says(part)) << part << "\n" << endings[0];
  EXPECT_TRUE(endings[1].threw(Kind::kTimeout)) << endings[1];
}

TEST_F(PushFailureTest, AHostThatDoesNotComeIsFoundWithoutTheDevice) {
  const long before = rank_waits();
  const auto endings = run_pushing(2, [](Communicator& g, int rank) {
    DeviceInts out(count_of(g));
    if (rank == 0) {
      Call call;
      call.timeout = milliseconds{300};
      push(g, {out.block()}, call);
    }
    const auto ending = broken_within(g, kSoon);
    if (!ending.returned) g.check();
    return std::string("not found");
  });
  EXPECT_TRUE(endings[0].threw(Kind::kTimeout)) << endings[0];
  EXPECT_TRUE(endings[0].says("seq 1 on group \"test\", rank 0 of 2 (CUDA)")) << endings[0];
  EXPECT_EQ(rank_waits(), before);
}

TEST_F(PushFailureTest, ARankThatDiesBetweenTheWaitsIsFoundSoon) {
  NcclWorld world(2);
  std::atomic<bool> enqueued{false}, over{false};
  const auto endings = run_pushing(world, [&](Communicator& g, int rank) {
    DeviceInts out(count_of(g));
    demand(push(g, {out.block()}).empty(), "pushed");
    synchronize();
    g.barrier({});
    if (rank == 1) {
      // Its device begins the call, but a kernel of its own comes before it has written.
      Held held;
      const Block block = out.block();
      const auto why = g.push({&block, 1}, DataType::kInt32, [](const Reached&) {}, {});
      demand(!why, "enqueued");
      enqueued = true;
      while (!over) std::this_thread::sleep_for(milliseconds{1});
      return std::string("dead");
    }
    demand(push(g, {out.block()}).empty(), "enqueued");
    while (!enqueued) std::this_thread::yield();
    world.control().kill(1);
    const auto begin = Clock::now();
    const auto ending = broken_within(g, kSoon);
    synchronize();  // the stream goes on
    demand(Clock::now() - begin < kSoon, "within two seconds");
    over = true;
    if (!ending.returned) g.check();
    return std::string("not found");
  });
  EXPECT_FALSE(endings[0].returned) << endings[0];
  EXPECT_TRUE(endings[0].says("rank 1")) << endings[0];
}

TEST_F(PushFailureTest, AnAbortEndsTheWait) {
  const auto begin = Clock::now();
  const auto endings = run_pushing(2, [](Communicator& g, int rank) {
    DeviceInts out(count_of(g));
    std::optional<Held> held;
    if (rank == 1) held.emplace();
    demand(push(g, {out.block()}).empty(), "enqueued");
    if (rank == 0) {
      std::thread([&] { g.abort("the user's reason"); }).join();
      synchronize();
    }
    const auto ending = broken_within(g, kSoon);
    if (held) held->let_go();
    synchronize();
    const auto next = ending_of([&] { return push(g, {out.block()}); });
    return next.threw(Kind::kAborted) ? ending.words : "wrong: " + next.words;
  });
  for (const auto& ending : endings) EXPECT_TRUE(ending.says("the user's reason")) << ending;
  EXPECT_LT(Clock::now() - begin, kSoon);
}

TEST_F(PushFailureTest, AKernelThatDoesNotStartEndsTheWaitOfTheOthers) {
  const auto endings = run_pushing(2, [](Communicator& g, int rank) {
    DeviceInts out(count_of(g));
    const Block block = out.block();
    const auto ending = ending_of([&] {
      g.push({&block, 1}, DataType::kInt32,
             [&](const Reached&) {
               FVD_CHECK(rank != 0, kLibrary, "a kernel of rank 0 does not start");
             },
             {});
      return std::string();
    });
    const auto found = ending.returned ? broken_within(g, kSoon) : ending;
    synchronize();
    return found.words;
  });
  for (const auto& ending : endings)
    EXPECT_TRUE(ending.says("a kernel of rank 0 does not start")) << ending;
}

TEST_F(PushFailureTest, WhoDoesNotWriteKeepsItsMemoryUntilTheOthersHaveHeard) {
  const auto endings = run_pushing(2, [](Communicator& g, int rank) {
    DeviceInts out(count_of(g));
    const Block block = out.block();
    auto begin = Clock::now();
    const auto ending = ending_of([&] {
      g.push({&block, 1}, DataType::kInt32,
             [&](const Reached&) {
               synchronize();  // the first wait is over: the others write
               begin = Clock::now();
               FVD_CHECK(rank != 0, kInvalidArgument, "rank 0 does not write");
             },
             {});
      return std::string();
    });
    const auto found = ending.returned ? broken_within(g, kSoon) : ending;
    synchronize();  // what comes next in the stream may take the memory for something else
    if (rank == 0) demand(Clock::now() - begin >= nccl::Push::kGrace, "the stream stood still");
    return found.words;
  });
  for (const auto& ending : endings) EXPECT_TRUE(ending.says("rank 0 does not write")) << ending;
}

TEST_F(PushFailureTest, ADisagreementIsFoundBeforeAnythingIsEnqueued) {
  for (const auto check : {NcclCheck::kBeside, NcclCheck::kBefore}) {
    const long before = rank_waits();
    const auto endings = run_pushing(
        2,
        [](Communicator& g, int rank) {
          DeviceInts out(count_of(g));
          Call call;
          call.layout = 7 + static_cast<std::uint64_t>(rank);
          return push(g, {out.block()}, call);
        },
        check);
    for (const auto& ending : endings) {
      EXPECT_TRUE(ending.threw(Kind::kMismatch)) << ending;
      for (const char* part : {"all_to_all(int32, uneven, layout 7)", ", layout 8)"})
        EXPECT_TRUE(ending.says(part)) << ending;
      // With kBeside a watchdog may be the first to find it, whose words are those of all calls.
      if (check == NcclCheck::kBefore) {
        EXPECT_TRUE(ending.says("No output was touched")) << ending;
      }
    }
    EXPECT_EQ(rank_waits(), before);
  }
}

TEST_F(PushFailureTest, WhoCallsSomethingElseDoesNotKeepTheOthersWaiting) {
  const auto begin = Clock::now();
  const auto endings = run_pushing(2, [](Communicator& g, int rank) {
    DeviceInts out(count_of(g));
    float value = 0;
    const auto ending = ending_of([&] {
      if (rank == 0) return push(g, {out.block()});
      g.all_reduce(&value, &value, 1, kFloats, {}, {});
      return std::string();
    });
    const auto found = ending.returned ? broken_within(g, kSoon) : ending;
    synchronize();
    return found.threw(Kind::kMismatch) ? found.words : "no mismatch: " + found.words;
  });
  for (const auto& ending : endings) {
    EXPECT_TRUE(ending.says("all_to_all") && ending.says("all_reduce")) << ending;
    EXPECT_FALSE(ending.says("no mismatch")) << ending;
  }
  EXPECT_LT(Clock::now() - begin, kSoon);
}

TEST_F(PushFailureTest, WhoLeavesACallUnderWayIsNotWrittenToAnyMore) {
  const auto begin = Clock::now();
  DeviceInts outs[] = {DeviceInts(2 * kCount), DeviceInts(2 * kCount)};
  std::atomic<bool> left{false};
  std::vector<Ending> found(2);
  NcclWorld world(2);
  world.pushes = [](int) { return true; };
  run_threads(2, [&](int rank) {
    auto g = world.communicator(rank, group(), NcclCheck::kBeside, [&] {
      return nccl::Libraries{fake_nccl(world.folder()), fake_cuda(), cuda::block_kernels()};
    });
    const auto checker = g->checker();
    std::optional<Held> held;
    if (rank == 1) held.emplace();
    EXPECT_EQ(push(*g, {outs[rank].block()}), "");
    if (rank == 0) {
      g.reset();
      left = true;
    }
    while (!left) std::this_thread::sleep_for(milliseconds{1});
    if (held) held->let_go();
    synchronize();
    found[static_cast<std::size_t>(rank)] = ending_of([&] {
      checker();
      return std::string("well");
    });
  });
  EXPECT_TRUE(found[0].threw(Kind::kAborted)) << found[0];
  EXPECT_TRUE(found[0].says("was destroyed while")) << found[0];
  EXPECT_TRUE(found[1].threw(Kind::kAborted)) << found[1];
  EXPECT_TRUE(found[1].says("rank 0 of 2 was destroyed while its exchange was under way"))
      << found[1];
  EXPECT_EQ(outs[0].values(), std::vector(2 * kCount, -1));
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds{10});
}

}  // namespace
}  // namespace fvd::test
