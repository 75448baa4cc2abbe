// Each way in which a call on the device, or the way to it, fails.
#include <algorithm>
#include <atomic>

#include "nccl/nccl_test.h"

namespace fvd::test {
namespace {

using NcclFailureTest = NcclCommunicatorTest;

TEST_F(NcclFailureTest, AFailedCallBreaksTheGroupAndClosesNcclsGroup) {
  NcclWorld world(1);
  const auto communicator = world.communicator(0, group(), NcclCheck::kBeside);
  FakeNcclFaults faults;
  faults.next_call = nccl::Result::kInternalError;
  set_faults(faults);
  float value = 0;
  const auto call = [&] {
    return ending_of([&] {
      communicator->all_reduce(&value, &value, 1, kFloats, {}, {});
      return std::string();
    });
  };
  const auto first = call();
  EXPECT_TRUE(first.threw(Kind::kLibrary)) << first;
  EXPECT_TRUE(first.says("ncclAllReduce on group \"test\", rank 0 of 1 failed")) << first;
  EXPECT_EQ(open_groups(), 0);
  const auto second = call();
  EXPECT_TRUE(second.threw(Kind::kAborted)) << second;
  EXPECT_TRUE(second.says("ncclAllReduce")) << second;
}

TEST_F(NcclFailureTest, AnAsynchronousErrorIsFoundWithoutACall) {
  NcclWorld world(1);
  const auto communicator = world.communicator(0, group(), NcclCheck::kBeside);
  FakeNcclFaults faults;
  faults.async_error = nccl::Result::kRemoteError;
  set_faults(faults);
  const auto ending = broken_within(*communicator, kSoon);
  EXPECT_TRUE(ending.threw(Kind::kPeerLost)) << ending;
  set_faults({});
}

TEST_F(NcclFailureTest, AnErrorOfTheDeviceIsFoundWithoutACall) {
  NcclWorld world(1);
  const auto communicator = world.communicator(0, group(), NcclCheck::kBeside);
  float value = 0;
  FakeNcclFaults faults;
  faults.calls_hang = true;
  set_faults(faults);
  communicator->all_reduce(&value, &value, 1, kFloats, {}, {});
  fail_next_query(static_cast<nccl::CudaResult>(700));
  const auto ending = broken_within(*communicator, kSoon);
  EXPECT_TRUE(ending.threw(Kind::kLibrary)) << ending;
  for (const char* part :
       {"CUDA error 700", "fastvideo: group \"test\", rank 0 of 1", "init again"})
    EXPECT_TRUE(ending.says(part)) << ending;
  synchronize();
}

TEST_F(NcclFailureTest, ConnectingEndsByItsDeadline) {
  FakeNcclFaults faults;
  faults.init_hangs = true;
  set_faults(faults);
  const auto begin = Clock::now();
  const auto endings = run(
      2, [](Communicator&, int) { return "connected"; }, NcclCheck::kBeside,
      group(milliseconds{300}));
  for (const auto& ending : endings) EXPECT_FALSE(ending.returned) << ending;
  EXPECT_TRUE(std::any_of(endings.begin(), endings.end(),
                          [](const Ending& ending) {
                            return ending.threw(Kind::kTimeout) &&
                                   ending.says("NCCL was not ready after 0.3 s");
                          }))
      << endings[0] << endings[1];
  EXPECT_LT(Clock::now() - begin, kSoon);
}

/// One rank fails while it connects; the other would wait for a minute.
TEST_F(NcclFailureTest, ConnectingEndsWhenAnotherRankFails) {
  NcclWorld world(2);
  std::vector<Ending> endings(2);
  FakeNcclFaults faults;
  faults.init_hangs = true;
  set_faults(faults);
  const auto begin = Clock::now();
  run_threads(2, [&](int rank) {
    const auto load = [&] {
      auto api = fake_nccl(world.folder());
      if (rank == 1)
        api.comm_init_rank_config = [](nccl::Comm*, int, nccl::UniqueId, int, nccl::CommConfig*) {
          return nccl::Result::kSystemError;
        };
      return nccl::Libraries{api, fake_cuda(), {}};
    };
    endings[static_cast<std::size_t>(rank)] = ending_of([&] {
      world.communicator(rank, group(), NcclCheck::kBeside, load);
      return std::string();
    });
  });
  EXPECT_LT(Clock::now() - begin, kSoon);
  for (const auto& ending : endings) {
    EXPECT_TRUE(ending.threw(Kind::kLibrary)) << ending;
    EXPECT_TRUE(ending.says("ncclCommInitRankConfig on group \"test\", rank 1 of 2")) << ending;
  }
}

TEST_F(NcclFailureTest, ConnectingEndsWhenAnotherRankDies) {
  NcclWorld world(2);
  std::vector<Ending> endings(2);
  FakeNcclFaults faults;
  faults.init_hangs = true;
  set_faults(faults);
  std::thread killer([&] {
    for (std::size_t begun = 0; begun < 2; std::this_thread::yield())
      for (const auto& call : take_log()) begun += call == "ncclCommInitRankConfig" ? 1 : 0;
    world.control().kill(1);
  });
  run_threads(2, [&](int rank) {
    endings[static_cast<std::size_t>(rank)] = ending_of([&] {
      world.communicator(rank, group(milliseconds{rank == 0 ? 60000 : 5000}), NcclCheck::kBeside);
      return std::string();
    });
  });
  killer.join();
  EXPECT_TRUE(endings[0].threw(Kind::kPeerLost)) << endings[0];
  EXPECT_TRUE(endings[0].says("rank 1")) << endings[0];
}

TEST_F(NcclFailureTest, WhatLeavingCutsOffIsNotLost) {
  NcclWorld world(2);
  std::vector<Ending> found(2);
  std::atomic<bool> left{false};
  run_threads(2, [&](int rank) {
    auto communicator = world.communicator(rank, group(), NcclCheck::kBeside);
    const auto checker = communicator->checker();
    float value = 1;
    communicator->all_reduce(&value, &value, 1, kFloats, {}, {});
    synchronize();
    if (rank == 0) communicator->all_reduce(&value, &value, 1, kFloats, {}, {});
    while (rank == 1 && !left) std::this_thread::yield();
    communicator.reset();
    left = true;
    synchronize();
    found[static_cast<std::size_t>(rank)] = ending_of([&] {
      checker();
      return std::string("well");
    });
  });
  EXPECT_TRUE(found[0].threw(Kind::kAborted)) << found[0];
  EXPECT_TRUE(found[0].says("was destroyed while calls on CUDA were under way")) << found[0];
  EXPECT_EQ(found[1].words, "well") << found[1];
}

TEST_F(NcclFailureTest, AllLearnThatOneHasNoLibrary) {
  NcclWorld world(3);
  std::vector<Ending> endings(3);
  run_threads(3, [&](int rank) {
    const auto load = [&]() -> nccl::Libraries {
      FVD_CHECK(rank != 1, kUnsupported, "nothing was found in a long search");
      return {fake_nccl(world.folder()), fake_cuda(), {}};
    };
    endings[static_cast<std::size_t>(rank)] = ending_of([&] {
      world.communicator(rank, group(), NcclCheck::kBeside, load);
      return std::string();
    });
  });
  for (const auto& ending : endings) {
    EXPECT_TRUE(ending.threw(Kind::kUnsupported)) << ending;
    EXPECT_TRUE(ending.says("nothing was found in a long search")) << ending;
  }
  EXPECT_TRUE(endings[0].says("rank 1 cannot connect its GPU")) << endings[0];
}

TEST_F(NcclFailureTest, RanksOfDifferentVersionsDoNotConnect) {
  NcclWorld world(2);
  std::vector<Ending> endings(2);
  run_threads(2, [&](int rank) {
    const auto load = [&] {
      auto api = fake_nccl(world.folder());
      api.version += rank;
      return nccl::Libraries{api, fake_cuda(), {}};
    };
    endings[static_cast<std::size_t>(rank)] = ending_of([&] {
      world.communicator(rank, group(), NcclCheck::kBeside, load);
      return std::string();
    });
  });
  for (const auto& ending : endings) {
    EXPECT_FALSE(ending.returned) << ending;
    EXPECT_TRUE(ending.says("2.29.7") && ending.says("2.29.8")) << ending;
  }
}

TEST_F(NcclFailureTest, ATimeoutNamesTheCallAndWhoIsMissing) {
  const auto endings = run(2, [](Communicator& g, int rank) {
    float values[4] = {};
    g.all_reduce(values, values, 4, kFloats, {}, {});
    synchronize();
    if (rank == 0) {
      Call call;
      call.timeout = milliseconds{200};
      g.all_reduce(values, values, 4, kFloats, {ReduceKind::kMax}, call);
    }
    const auto ending = broken_within(g, kSoon);
    synchronize();
    if (!ending.returned) g.check();
    return std::string("not found");
  });
  EXPECT_TRUE(endings[0].threw(Kind::kTimeout)) << endings[0];
  for (const char* part : {"all_reduce(MAX, float32 x 4) seq 2", "(1 of 2 ranks arrived)",
                           "of 0.2 s", "missing: rank 1  last called: seq 1 all_reduce(SUM"})
    EXPECT_TRUE(endings[0].says(part)) << part << "\n" << endings[0];
  EXPECT_TRUE(endings[1].threw(Kind::kTimeout)) << endings[1];
  EXPECT_TRUE(endings[1].says("all_reduce(MAX, float32 x 4) seq 2")) << endings[1];
}

TEST_F(NcclFailureTest, TimeIsCountedFromWhereTheDeviceBegins) {
  const auto endings = run(1, [](Communicator& g, int) {
    float value = 1;
    enqueue_on(nullptr, [] { std::this_thread::sleep_for(milliseconds{400}); });  // the caller's
    Call call;
    call.timeout = milliseconds{300};
    g.all_reduce(&value, &value, 1, kFloats, {}, call);
    synchronize();
    g.check();
    return "well";
  });
  EXPECT_EQ(endings[0].words, "well") << endings[0];
}

TEST_F(NcclFailureTest, AnAbortFromAnotherThreadEndsWhatRuns) {
  const auto begin = Clock::now();
  const auto endings = run(2, [](Communicator& g, int rank) {
    float value = 1;
    if (rank == 0) {
      g.all_reduce(&value, &value, 1, kFloats, {}, {});  // rank 1 never calls it
      std::thread([&] { g.abort("the user's reason"); }).join();
      synchronize();
    }
    const auto ending = broken_within(g, kSoon);
    const auto next = ending_of([&] {
      g.all_reduce(&value, &value, 1, kFloats, {}, {});
      return std::string();
    });
    return next.threw(Kind::kAborted) && next.says("the user's reason") ? ending.words : "wrong";
  });
  for (const auto& ending : endings) EXPECT_TRUE(ending.says("the user's reason")) << ending;
  EXPECT_LT(Clock::now() - begin, kSoon);
}

TEST_F(NcclFailureTest, ADeadRankBreaksTheGroupOfTheOthers) {
  NcclWorld world(3);
  std::atomic<int> ready{0};
  std::vector<double> times(3);
  const auto endings = run(world, [&](Communicator& g, int rank) {
    float value = 1;
    g.all_reduce(&value, &value, 1, kFloats, {}, {});
    synchronize();
    if (++ready == 3) world.control().kill(2);
    if (rank == 2) {
      const auto end = Clock::now() + kSoon;
      while (ready < 5 && Clock::now() < end) std::this_thread::sleep_for(milliseconds{5});
      return std::string("dead");
    }
    while (ready < 3) std::this_thread::yield();
    const auto begin = Clock::now();
    const auto ending = ending_of([&] {
      g.all_reduce(&value, &value, 1, kFloats, {}, {});
      return std::string();
    });
    const auto found = ending.returned ? broken_within(g, kSoon) : ending;
    times[static_cast<std::size_t>(rank)] =
        std::chrono::duration<double>(Clock::now() - begin).count();
    synchronize();
    ++ready;
    return found.words;
  });
  for (int rank : {0, 1}) {
    EXPECT_TRUE(endings[static_cast<std::size_t>(rank)].says("rank 2")) << endings[0] << endings[1];
    EXPECT_LT(times[static_cast<std::size_t>(rank)], 2.0);
  }
}

TEST_F(NcclFailureTest, ADisagreementIsFoundWhileTheCallsRun) {
  const auto endings = run(2, [](Communicator& g, int rank) {
    float values[4] = {};
    g.all_reduce(values, values, rank == 0 ? 4 : 3, kFloats, {}, {});
    const auto ending = broken_within(g, kSoon);
    synchronize();
    return ending.threw(Kind::kMismatch) ? ending.words : "not a mismatch: " + ending.words;
  });
  for (const auto& ending : endings) {
    EXPECT_TRUE(ending.says("float32 x 4") && ending.says("float32 x 3")) << ending;
    EXPECT_FALSE(ending.says("not a mismatch")) << ending;
  }
}

TEST_F(NcclFailureTest, ATagThatDiffersIsAMismatch) {
  const auto endings = run(
      2,
      [](Communicator& g, int rank) {
        float value = 1;
        Call call;
        call.timeout = kSoon;
        if (rank == 0)
          g.send(contiguous_block(static_cast<const void*>(&value), 4), kFloats, 1, 3, call)
              ->wait(call);
        else
          g.recv(contiguous_block(static_cast<void*>(&value), 4), kFloats, 0, 4, call)->wait(call);
        const auto ending = broken_within(g, kSoon);
        synchronize();
        g.check();
        return ending.words;
      },
      NcclCheck::kBefore);
  for (const auto& ending : endings) {
    EXPECT_TRUE(ending.threw(Kind::kMismatch)) << ending;
    EXPECT_TRUE(ending.says("tag 3") && ending.says("tag 4")) << ending;
  }
}

}  // namespace
}  // namespace fvd::test
