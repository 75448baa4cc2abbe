// Sends and receives that fail, are given up, or outlive their group.
#include <atomic>

#include "nccl/nccl_test.h"

namespace fvd::test {
namespace {

using NcclTransferTest = NcclCommunicatorTest;

std::unique_ptr<Transfer> exchange(Communicator& g, int rank, float& value, bool sends) {
  if (sends)
    return g.send(contiguous_block(static_cast<const void*>(&value), 4), kFloats, 1 - rank, 0, {});
  return g.recv(contiguous_block(static_cast<void*>(&value), 4), kFloats, 1 - rank, 0, {});
}

/// One message from rank 0 to rank 1, after which the two are connected.
void connect(Communicator& g, int rank) {
  float value = 0;
  exchange(g, rank, value, rank == 0)->wait({});
  synchronize();
}

// Under AddressSanitizer also: that nobody reads what went with the group.
TEST_F(NcclTransferTest, ItMayBeWaitedForWhenTheGroupHasGone) {
  for (bool dropped : {false, true}) {
    NcclWorld world(2);
    std::vector<Ending> endings(2);
    float values[2] = {1, 2};
    run_threads(2, [&](int rank) {
      auto group = world.communicator(rank, NcclTransferTest::group(), NcclCheck::kBeside);
      auto transfer = exchange(*group, rank, values[rank], false);  // both wait for the other
      group.reset();
      if (dropped) transfer.reset();
      endings[static_cast<std::size_t>(rank)] = ending_of([&] {
        if (!dropped) demand(transfer->done(), "a transfer that cannot come is done");
        if (!dropped) transfer->wait({});
        return std::string();
      });
    });
    for (const auto& ending : endings) {
      if (dropped) continue;
      EXPECT_TRUE(ending.threw(Kind::kAborted)) << ending;
      EXPECT_TRUE(ending.says("recv from rank") && ending.says("was destroyed before")) << ending;
    }
  }
}

TEST_F(NcclTransferTest, OneThatWasDoneStaysSo) {
  const auto endings = run(2, [](Communicator& g, int rank) {
    connect(g, rank);
    return "well";
  });
  for (const auto& ending : endings) EXPECT_EQ(ending.words, "well") << ending;
  NcclWorld world(2);
  run_threads(2, [&](int rank) {
    float value = static_cast<float>(rank);
    auto group = world.communicator(rank, NcclTransferTest::group(), NcclCheck::kBeside);
    auto transfer = exchange(*group, rank, value, rank == 0);
    while (!transfer->done()) std::this_thread::yield();
    group.reset();
    transfer->wait({});
    demand(value == 0, "the message of rank 0 has come");
  });
}

TEST_F(NcclTransferTest, ALaunchThatFailedIsNotTakenForDone) {
  for (int turn = 0; turn < 5; ++turn) {
    set_faults({});
    std::atomic<int> connected{0};
    const auto endings = run(2, [&](Communicator& g, int rank) {
      connect(g, rank);
      if (++connected == 2) {
        FakeNcclFaults faults;
        faults.next_call = nccl::Result::kInternalError;
        set_faults(faults);
        ++connected;
      }
      while (connected < 3) std::this_thread::yield();
      float value = static_cast<float>(rank + 1);
      const auto transfer = exchange(g, rank, value, rank == 1);  // another lane, not connected yet
      while (!transfer->done()) {
      }
      transfer->wait({});
      return std::to_string(value);
    });
    for (const auto& ending : endings) {
      EXPECT_FALSE(ending.returned) << ending;
      EXPECT_TRUE(ending.says("failed: an error of the fake")) << ending;
    }
  }
}

TEST_F(NcclTransferTest, MemoryIsTheCallersWhenTheDeviceHasLetGo) {
  const auto endings = run(2, [](Communicator& g, int rank) {
    connect(g, rank);
    float value = 0;
    auto transfer = exchange(g, rank, value, rank == 0);
    if (rank == 1) {
      transfer->wait({});
      synchronize();
      FakeNcclFaults faults;
      faults.abort_ms = 300;
      set_faults(faults);
      transfer = exchange(g, rank, value, false);  // of what is never sent
      std::thread breaker([&] { g.abort("enough"); });
      while (!transfer->done()) std::this_thread::yield();
      const auto log = take_log();
      breaker.join();
      const auto aborted = std::count(log.begin(), log.end(), "ncclCommAbort");
      demand(take_log().empty(), "nothing was left to abort");
      demand(aborted >= 2, "the group and its pairs are aborted before a transfer is done");
      return std::string("well");
    }
    broken_within(g, kSoon);
    return std::string("well");
  });
  EXPECT_EQ(endings[1].words, "well") << endings[1];
}

TEST_F(NcclTransferTest, AnErrorOfAPairIsFoundWithoutACall) {
  const auto endings = run(3, [](Communicator& g, int rank) {
    if (rank == 2) return broken_within(g, kSoon).words;
    connect(g, rank);
    FakeNcclFaults faults;
    faults.async_error = nccl::Result::kRemoteError;
    faults.async_error_size = 2;
    set_faults(faults);
    return broken_within(g, kSoon).words;
  });
  for (const auto& ending : endings) EXPECT_TRUE(ending.says("an NCCL communicator")) << ending;
}

TEST_F(NcclTransferTest, TheWatchdogStaysOnItsDevice) {
  const auto endings = run(2, [](Communicator& g, int rank) {
    connect(g, rank);
    g.barrier({});
    const long before = device_switches();
    std::this_thread::sleep_for(milliseconds{60});  // some rounds of the watchdogs
    // Each watchdog goes there once, and one may have begun late.
    demand(device_switches() - before <= 2, "a thread of the group went from GPU to GPU");
    g.barrier({});
    return "well";
  });
  for (const auto& ending : endings) EXPECT_EQ(ending.words, "well") << ending;
}

}  // namespace
}  // namespace fvd::test
