// Ranks that write into each other's outputs: what arrives, and how they agree that it cannot be.
#include "nccl/push_test.h"

#include "nccl/shared_memory.h"

namespace fvd::test {
namespace {

TEST_F(PushTest, EveryRankWritesIntoTheOutputsOfAll) {
  for (const int ranks : {2, 3, 5}) {
    const auto before = launches();
    const auto endings = run_pushing(ranks, [&](Communicator& g, int) {
      DeviceInts first(count_of(g)), second(count_of(g));
      for (int call = 0; call < 4; ++call) {
        std::fill_n(first.data(), count_of(g), -1);
        demand(push(g, {first.block(), second.block()}).empty(), "pushed");
        synchronize();
        demand(first.values() == everybody(ranks), "the first output");
        demand(second.values() == everybody(ranks), "the second output");
      }
      demand(g.sequence_number() == 4, "one call each");
      return "well";
    });
    for (const auto& ending : endings) EXPECT_EQ(ending.words, "well") << ending;
    // Each byte of the outputs is read once and written once; one launch for each call and rank.
    const long bytes = 4L * ranks * 2 * ranks * static_cast<long>(kCount * sizeof(int));
    EXPECT_EQ(launches().bytes - before.bytes, 2 * bytes);
    EXPECT_EQ(launches().count - before.count, 4 * ranks);
  }
}

TEST_F(PushTest, CallsOnTwoStreamsComeOneAfterTheOther) {
  const auto endings = run_pushing(2, [&](Communicator& g, int rank) {
    const auto cuda = fake_cuda();
    nccl::CudaStream streams[2];
    for (auto& stream : streams) cuda.stream_create(&stream, nccl::kStreamNonBlocking, 0);
    DeviceInts out(count_of(g)), other(count_of(g));
    for (int call = 0; call < 20; ++call) {
      // One rank is late on one stream, the other one on the other.
      if (call % 2 == rank)
        enqueue_on(streams[call % 2], [] { std::this_thread::sleep_for(milliseconds{2}); });
      Call settings;
      settings.stream = {streams[call % 2]};
      demand(push(g, {call % 2 == 0 ? out.block() : other.block()}, settings).empty(), "pushed");
    }
    for (auto* stream : streams) synchronize({stream});
    demand(out.values() == everybody(2) && other.values() == everybody(2), "the outputs");
    for (auto* stream : streams) cuda.stream_destroy(stream);
    return "well";
  });
  for (const auto& ending : endings) EXPECT_EQ(ending.words, "well") << ending;
}

TEST_F(PushTest, AnEmptyOutputNeedsNoMemory) {
  const auto endings = run_pushing(2, [&](Communicator& g, int rank) {
    DeviceInts out(count_of(g));
    demand(push(g, {rank == 0 ? out.block() : contiguous_block(static_cast<void*>(nullptr), 0)})
               .empty(),
           "pushed");
    synchronize();
    demand(rank == 1 || out.values() == everybody(2), "what the other wrote");
    demand(push(g, {}).empty(), "pushed nothing");
    return "well";
  });
  for (const auto& ending : endings) EXPECT_EQ(ending.words, "well") << ending;
}

/// Why ranks do not push, where nothing is asked of anybody.
std::string why_of(const Ending& ending) { return ending.returned ? ending.words : "it threw"; }

TEST_F(PushTest, RanksThatDifferInTheSettingFallBack) {
  NcclWorld world(3);
  world.pushes = [](int rank) { return rank != 1; };
  const long before = rank_waits();
  const auto endings = run_pushing(world, [](Communicator& g, int) {
    DeviceInts out(count_of(g));
    return push(g, {out.block()});
  });
  for (const auto& ending : endings)
    EXPECT_EQ(why_of(ending), "rank 1: FASTVIDEO_DIST_PUSH is 0") << ending;
  EXPECT_EQ(rank_waits(), before);
}

TEST_F(PushTest, SwitchedOffNobodyIsAskedAndNothingCounted) {
  NcclWorld world(2);
  world.pushes = [](int) { return false; };
  const auto endings = run_pushing(world, [](Communicator& g, int rank) {
    DeviceInts out(count_of(g));
    if (rank == 0) return std::string("not called");  // it need not be by all, then
    const auto why = push(g, {out.block()});
    demand(g.sequence_number() == 0, "no call");
    return why;
  });
  EXPECT_EQ(why_of(endings[1]), "FASTVIDEO_DIST_PUSH is 0") << endings[1];
}

TEST_F(PushTest, WithoutKernelsOnARankAllFallBack) {
  NcclWorld world(2);
  world.pushes = [](int) { return true; };
  std::vector<std::string> whys(2);
  run_threads(2, [&](int rank) {
    const auto load = [&] {
      return nccl::Libraries{fake_nccl(world.folder()), fake_cuda(),
                             rank == 1 ? nccl::BlockKernels{} : cuda::block_kernels()};
    };
    const auto g = world.communicator(rank, group(), NcclCheck::kBeside, load);
    DeviceInts out(count_of(*g));
    whys[static_cast<std::size_t>(rank)] = push(*g, {out.block()});
  });
  for (const auto& why : whys) EXPECT_EQ(why, "rank 1: this package has no kernels for GPUs there");
}

TEST_F(PushTest, ARankAloneDoesNot) {
  const auto endings = run_pushing(1, [](Communicator& g, int) {
    DeviceInts out(count_of(g));
    return push(g, {out.block()});
  });
  EXPECT_EQ(why_of(endings[0]), "the group has one rank");
}

TEST_F(PushTest, ATransportOfTheCpuSaysThatItHasNoSuchMemory) {
  ThreadWorld world(1);
  MemoryStore store;
  const auto cpu = world.communicator(store, 0, group());
  DeviceInts out(count_of(*cpu));
  EXPECT_EQ(push(*cpu, {out.block()}), "this transport has no memory that ranks share on a device");
}

TEST_F(PushTest, ACaptureIsLeftToNccl) {
  const auto endings = run_pushing(2, [](Communicator& g, int) {
    DeviceInts out(count_of(g));
    demand(push(g, {out.block()}).empty(), "pushed");
    synchronize();
    nccl::CudaStream stream = nullptr;
    fake_cuda().stream_create(&stream, nccl::kStreamNonBlocking, 0);
    set_capturing(stream, true);
    Call call;
    call.stream = {stream};
    const auto why = push(g, {out.block()}, call);
    set_capturing(stream, false);
    fake_cuda().stream_destroy(stream);
    demand(g.sequence_number() == 1, "it was no call");
    return why;
  });
  for (const auto& ending : endings)
    EXPECT_EQ(why_of(ending), "the call is captured in a CUDA graph") << ending;
}

TEST_F(PushTest, MemoryThatCannotBeSharedIsSaidByItsRank) {
  const auto endings = run_pushing(2, [](Communicator& g, int rank) {
    DeviceInts out(count_of(g)), bad(count_of(g));
    if (rank == 1) set_shareable(bad.data(), false);
    demand(push(g, {out.block()}).empty(), "pushed");
    const auto why = push(g, {bad.block()});
    demand(push(g, {out.block()}).empty(), "pushed again");
    synchronize();
    demand(out.values() == everybody(2), "what was pushed");
    return why;
  });
  for (const auto& ending : endings) {
    EXPECT_TRUE(ending.returned && ending.says("rank 1: the memory of an output cannot be opened"))
        << ending;
    EXPECT_TRUE(ending.says("expandable_segments")) << ending;
  }
}

TEST_F(PushTest, MoreOutputsThanCanBeToldOf) {
  const auto endings = run_pushing(2, [](Communicator& g, int) {
    DeviceInts out(count_of(g));
    return push(g, std::vector(17, out.block()));
  });
  for (const auto& ending : endings)
    EXPECT_TRUE(ending.says("rank 0: the call has 17 outputs, at most 16")) << ending;
}

TEST_F(PushTest, WhatOneRankCannotOpenNobodyUsesAndNobodyTriesAgain) {
  std::atomic<long> after_first{0};
  const auto endings = run_pushing(3, [&](Communicator& g, int rank) {
    DeviceInts out(count_of(g)), good(count_of(g));
    demand(push(g, {good.block()}).empty(), "pushed");
    synchronize();
    g.barrier({});
    if (rank == 0) refuse_to_open_on(2);
    g.barrier({});
    const auto why = push(g, {out.block(), good.block()});
    demand(fake_cuda().get_last_error() == nccl::CudaResult::kSuccess,
           "torch finds no error of ours");
    g.barrier({});
    if (rank == 0) {
      refuse_to_open_on(-1);
      after_first = attempts_to_open();
    }
    g.barrier({});
    demand(push(g, {out.block()}) == why, "the same reason");
    g.barrier({});
    demand(attempts_to_open() == after_first, "nothing was tried");
    demand(push(g, {good.block()}).empty(), "pushed what was open");
    synchronize();
    demand(good.values() == everybody(3), "the good output");
    demand(out.values() == std::vector(count_of(g), -1), "the other one is untouched");
    return why;
  });
  for (const auto& ending : endings)
    EXPECT_TRUE(ending.returned &&
                ending.says("rank 2: the memory of rank 1 cannot be opened on GPU 2: an error"))
        << ending;
}

TEST_F(PushTest, PadsThatCannotBeOpenedAreAskedForOnce) {
  refuse_to_open_on(1);
  const long before = attempts_to_open();
  const auto endings = run_pushing(2, [&](Communicator& g, int) {
    DeviceInts out(count_of(g));
    const auto why = push(g, {out.block()});
    demand(push(g, {out.block()}) == why, "the same reason");
    return why;
  });
  for (const auto& ending : endings)
    EXPECT_TRUE(ending.says("rank 1: the memory of rank 0 cannot be opened")) << ending;
  EXPECT_EQ(attempts_to_open(), before + 2);
}

TEST_F(PushTest, MemoryThatComesAndGoesDoesNotStayOpen) {
  constexpr int kCalls = 100;
  const auto endings = run_pushing(2, [](Communicator& g, int) {
    for (int call = 0; call < kCalls; ++call) {
      DeviceInts out(count_of(g));
      demand(push(g, {out.block()}).empty(), "pushed");
      synchronize();
      demand(out.values() == everybody(2), "the output");
    }
    g.barrier({});
    // Each rank has the other's pad, and what is closed with the next call.
    demand(open_memory() <= 2 * static_cast<long>(nccl::Mappings::kMost + 4), "most are closed");
    g.barrier({});
    return "well";
  });
  for (const auto& ending : endings) EXPECT_EQ(ending.words, "well") << ending;
}

TEST_F(PushTest, ManyGroupsOneAfterTheOtherLeaveNothingOpen) {
  for (int i = 0; i < 10; ++i) {
    const auto endings = run_pushing(2, [](Communicator& g, int) {
      for (int call = 0; call < 3; ++call) {
        // Freed while the others have it open, and often at the same address again.
        DeviceInts out(count_of(g) + static_cast<std::size_t>(call));
        demand(push(g, {out.block()}).empty(), "pushed");
        synchronize();
        auto values = out.values();
        values.resize(count_of(g));
        demand(values == everybody(2), "the output");
      }
      return "well";
    });
    for (const auto& ending : endings) EXPECT_EQ(ending.words, "well") << ending;
    EXPECT_EQ(open_memory(), 0);
  }
}

}  // namespace
}  // namespace fvd::test
