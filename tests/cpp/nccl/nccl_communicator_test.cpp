// What the contract suite does not ask: the order of NCCL's calls, memory, capture.
#include "nccl/nccl_test.h"

namespace fvd::test {
namespace {

using Strings = std::vector<std::string>;

/// Without what connecting needs.
Strings calls_of(const std::function<void(Communicator&)>& body) {
  NcclWorld world(1);
  const auto group =
      world.communicator(0, {"test", std::chrono::seconds(60), {}}, NcclCheck::kBeside);
  take_log();
  body(*group);
  synchronize();
  return take_log();
}

TEST_F(NcclCommunicatorTest, ACollectiveIsOneGroupOfCalls) {
  float in[4] = {1, 2, 3, 4}, out[4] = {};
  EXPECT_EQ(calls_of([&](Communicator& g) { g.all_reduce(in, out, 4, kFloats, {}, {}); }),
            (Strings{"ncclGroupStart", "ncclAllReduce", "ncclGroupEnd"}));
  EXPECT_EQ(out[3], 4.0f);
  const auto from = contiguous_block(static_cast<const void*>(in), 16);
  const auto to = contiguous_block(static_cast<void*>(out), 16);
  EXPECT_EQ(calls_of([&](Communicator& g) {
              g.all_to_all(std::span(&from, 1), std::span(&to, 1), kFloats, true, {});
            }),
            (Strings{"ncclGroupStart", "ncclSend to 0", "ncclRecv from 0", "ncclGroupEnd"}));
}

TEST_F(NcclCommunicatorTest, RunsThatMatchAreMessagesAndNeedNoStaging) {
  float in[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, out[6] = {};
  const ConstBlock from{reinterpret_cast<const std::byte*>(in), 3, 8, 12};
  const Block to{reinterpret_cast<std::byte*>(out), 3, 8, 8};
  const ConstBlocks sent(&from, 1);
  const Blocks received(&to, 1);
  const long before = allocations();
  EXPECT_EQ(calls_of([&](Communicator& g) {
              g.all_to_all_runs(std::span(&sent, 1), std::span(&received, 1), kFloats, {});
              EXPECT_EQ(allocations(), before);
            }),
            (Strings{"ncclGroupStart", "ncclSend to 0", "ncclSend to 0", "ncclSend to 0",
                     "ncclRecv from 0", "ncclRecv from 0", "ncclRecv from 0", "ncclGroupEnd"}));
  EXPECT_EQ(std::vector<float>(out, out + 6), (std::vector<float>{1, 2, 4, 5, 7, 8}));
}

TEST_F(NcclCommunicatorTest, APremultipliedSumIsMadeForItsCall) {
  float value = 3, out = 0;
  EXPECT_EQ(calls_of([&](Communicator& g) {
              g.all_reduce(&value, &out, 1, kFloats, {ReduceKind::kPremulSum, 0.5}, {});
            }),
            (Strings{"ncclGroupStart", "ncclRedOpCreatePreMulSum", "ncclAllReduce",
                     "ncclRedOpDestroy", "ncclGroupEnd"}));
  EXPECT_EQ(out, 1.5f);
}

TEST_F(NcclCommunicatorTest, NothingIsCalledForNothing) {
  EXPECT_EQ(calls_of([](Communicator& g) { g.all_reduce(nullptr, nullptr, 0, kFloats, {}, {}); }),
            Strings{});
}

TEST_F(NcclCommunicatorTest, ItIsMadeWithoutBlockingAndLeftInGoodOrder) {
  NcclWorld world(1);
  world.communicator(0, group(), NcclCheck::kBeside).reset();
  const auto log = take_log();
  EXPECT_EQ(log, (Strings{"ncclGetUniqueId", "ncclCommInitRankConfig", "ncclCommFinalize",
                          "ncclCommDestroy"}));
}

TEST_F(NcclCommunicatorTest, WhoCannotLeaveInGoodOrderAborts) {
  NcclWorld world(1);
  auto communicator = world.communicator(0, group(), NcclCheck::kBeside);
  FakeNcclFaults faults;
  faults.finalize_hangs = true;
  set_faults(faults);
  const auto begin = Clock::now();
  communicator.reset();
  EXPECT_LT(Clock::now() - begin, 2 * kSoon);
  EXPECT_EQ(take_log().back(), "ncclCommAbort");
}

TEST_F(NcclCommunicatorTest, AGroupThatIsInProgressIsWaitedFor) {
  FakeNcclFaults faults;
  faults.group_polls = 5;
  set_faults(faults);
  const auto endings = run(2, [](Communicator& g, int rank) {
    float value = static_cast<float>(rank + 1);
    for (int turn = 0; turn < 3; ++turn) g.all_reduce(&value, &value, 1, kFloats, {}, {});
    synchronize();
    return std::to_string(value);
  });
  for (const auto& ending : endings) EXPECT_EQ(ending.words, std::to_string(12.0f)) << ending;
}

TEST_F(NcclCommunicatorTest, ManyCallsAreComparedInTheirOrder) {
  const auto endings = run(3, [](Communicator& g, int) {
    float value = 1;
    for (int turn = 0; turn < 200; ++turn)
      g.all_reduce(&value, &value, 1, kFloats, {ReduceKind::kMax}, {});
    synchronize();
    std::this_thread::sleep_for(milliseconds{50});
    g.check();
    return "well";
  });
  for (const auto& ending : endings) EXPECT_EQ(ending.words, "well") << ending;
}

TEST_F(NcclCommunicatorTest, StridedMemoryNeedsKernels) {
  NcclWorld world(1);
  const auto without = [&] { return nccl::Libraries{fake_nccl(world.folder()), fake_cuda(), {}}; };
  const auto g = world.communicator(0, group(), NcclCheck::kBeside, without);
  std::byte memory[32] = {}, out[16] = {};
  const ConstBlock strided{memory, 4, 4, 8};
  const Block whole = contiguous_block(static_cast<void*>(out), 16);
  const auto ending = ending_of([&] {
    g->all_gather(strided, std::span(&whole, 1), DataType::kUInt8, {});
    return std::string();
  });
  EXPECT_TRUE(ending.threw(Kind::kUnsupported)) << ending;
  EXPECT_TRUE(ending.says("contiguous()")) << ending;
  float value = 1;
  g->all_reduce(&value, &value, 1, kFloats, {}, {});  // as good as before
  synchronize();
}

TEST_F(NcclCommunicatorTest, PiecesThatLieApartNeedNone) {
  NcclWorld world(2);
  std::vector<Ending> endings(2);
  run_threads(2, [&](int rank) {
    endings[static_cast<std::size_t>(rank)] = ending_of([&] {
      const auto without = [&] {
        return nccl::Libraries{fake_nccl(world.folder()), fake_cuda(), {}};
      };
      const auto g = world.communicator(rank, group(), NcclCheck::kBeside, without);
      int mine = rank + 5, first = 0, gap = 99, second = 0;
      const Block out[] = {contiguous_block(&second, 4), contiguous_block(&first, 4)};
      g->all_gather(contiguous_block(static_cast<const void*>(&mine), 4), out, DataType::kInt32,
                    {});
      synchronize();
      return text(second, " ", first, " ", gap);
    });
  });
  for (const auto& ending : endings) EXPECT_EQ(ending.words, "5 6 99") << ending;
  EXPECT_EQ(allocations(), 0);
}

TEST_F(NcclCommunicatorTest, ACapturedCallIsNeitherWatchedNorCompared) {
  const auto endings = run(1, [](Communicator& g, int) {
    float value = 1;
    const long before = event_queries();
    set_capturing(nullptr, true);
    g.all_reduce(&value, &value, 1, kFloats, {}, {});
    demand(g.capturing({}), "it captures");
    std::this_thread::sleep_for(milliseconds{60});  // some rounds of the watchdog
    const auto barrier = ending_of([&] {
      g.barrier({});
      return std::string();
    });
    set_capturing(nullptr, false);
    demand(event_queries() == before, "no event was queried");
    demand(barrier.threw(Kind::kUnsupported), barrier.words);
    synchronize();
    g.check();
    return "well";
  });
  EXPECT_EQ(endings[0].words, "well") << endings[0];
}

TEST_F(NcclCommunicatorTest, ACommunicatorIsThereAsLongAsItsGraphs) {
  NcclWorld world(1);
  const auto make = [&] { return world.communicator(0, group(), NcclCheck::kBeside); };
  const auto capture = [](Communicator& g) {
    float value = 1;
    set_capturing(nullptr, true);
    for (int i = 0; i < 2; ++i) g.all_reduce(&value, &value, 1, kFloats, {}, {});
    set_capturing(nullptr, false);
    synchronize();
  };
  const auto left = [](Strings log) {
    std::erase_if(log, [](const std::string& call) { return !call.starts_with("ncclComm"); });
    return log;
  };
  auto first = make();
  capture(*first);
  capture(*first);  // a second graph
  take_log();
  first.reset();
  EXPECT_EQ(left(take_log()), Strings{}) << "a replay would find nothing";
  auto second = make();
  EXPECT_EQ(left(take_log()), Strings{"ncclCommInitRankConfig"});
  destroy_graphs();
  second.reset();
  const auto log = left(take_log());
  EXPECT_EQ(std::count(log.begin(), log.end(), "ncclCommAbort"), 1) << "the first one";
  EXPECT_EQ(std::count(log.begin(), log.end(), "ncclCommDestroy"), 1) << "the second one";
}

TEST_F(NcclCommunicatorTest, AnAbortDoesNotWaitForGraphs) {
  NcclWorld world(1);
  auto g = world.communicator(0, group(), NcclCheck::kBeside);
  float value = 1;
  set_capturing(nullptr, true);
  g->all_reduce(&value, &value, 1, kFloats, {}, {});
  set_capturing(nullptr, false);
  synchronize();
  take_log();
  g->abort("over");
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  Strings log;
  while (log.empty() && std::chrono::steady_clock::now() < end) log = take_log();
  EXPECT_EQ(log, Strings{"ncclCommAbort"});
  g.reset();
  destroy_graphs();
}

TEST_F(NcclCommunicatorTest, TheWatchdogEndsNoCaptureOfAnother) {
  const auto endings = run(1, [](Communicator& g, int) {
    float value = 1;
    FakeNcclFaults faults;
    faults.calls_hang = true;
    set_faults(faults);
    g.all_reduce(&value, &value, 1, kFloats, {}, {});  // is looked at again and again
    nccl::CudaStream other = nullptr;
    fake_cuda().stream_create(&other, nccl::kStreamNonBlocking, 0);
    set_strict_captures(true);
    set_capturing(other, true);
    const long before = event_queries();
    while (event_queries() < before + 5) std::this_thread::yield();
    set_capturing(other, false);
    set_strict_captures(false);
    fake_cuda().stream_destroy(other);
    g.check();
    g.abort("enough");
    synchronize();
    return "well";
  });
  EXPECT_EQ(endings[0].words, "well") << endings[0];
}

TEST_F(NcclCommunicatorTest, ATransferIsCapturedOnceTheRanksAreConnected) {
  const auto endings = run(2, [](Communicator& g, int rank) {
    float value = static_cast<float>(rank);
    const auto exchange = [&] {
      if (rank == 0)
        return g.send(contiguous_block(static_cast<const void*>(&value), 4), kFloats, 1, 0, {});
      return g.recv(contiguous_block(static_cast<void*>(&value), 4), kFloats, 0, 0, {});
    };
    set_capturing(nullptr, true);
    const auto early = ending_of([&] {
      exchange();
      return std::string();
    });
    set_capturing(nullptr, false);
    demand(early.threw(Kind::kUnsupported), early.words);
    demand(early.says("exchange one message before the capture"), early.words);
    exchange()->wait({});
    synchronize();
    set_capturing(nullptr, true);
    exchange()->wait({});
    set_capturing(nullptr, false);
    synchronize();
    g.check();
    return std::to_string(value);
  });
  for (const auto& ending : endings) EXPECT_EQ(ending.words, std::to_string(0.0f)) << ending;
}

TEST_F(NcclCommunicatorTest, TheCallersDeviceStaysTheCurrentOne) {
  NcclWorld world(1);
  const auto g = world.communicator(0, group(), NcclCheck::kBeside);
  const auto cuda = fake_cuda();
  cuda.set_device(7);
  float value = 1;
  Call call;
  nccl::CudaStream stream = nullptr;
  cuda.stream_create(&stream, nccl::kStreamNonBlocking, 0);
  call.stream = {stream};
  g->all_reduce(&value, &value, 1, kFloats, {}, call);
  int device = 0;
  cuda.get_device(&device);
  EXPECT_EQ(device, 7);
  synchronize(call.stream);
  cuda.stream_destroy(stream);
  cuda.set_device(0);
}

TEST_F(NcclCommunicatorTest, AReceiveFromAnybodyIsRefused) {
  const auto endings = run(2, [](Communicator& g, int) {
    float value = 0;
    g.recv(contiguous_block(static_cast<void*>(&value), 4), kFloats, Communicator::kAnySource, 0,
           {});
    return "accepted";
  });
  for (const auto& ending : endings) EXPECT_TRUE(ending.threw(Kind::kUnsupported)) << ending;
}

TEST_F(NcclCommunicatorTest, MadeAndLeftManyTimes) {
  for (int turn = 0; turn < 20; ++turn) {
    const auto endings = run(2, [](Communicator& g, int) {
      float value = 1;
      g.all_reduce(&value, &value, 1, kFloats, {}, {});
      synchronize();
      return "well";
    });
    for (const auto& ending : endings) EXPECT_EQ(ending.words, "well") << ending;
  }
  EXPECT_EQ(allocations(), 0);
}

}  // namespace
}  // namespace fvd::test
