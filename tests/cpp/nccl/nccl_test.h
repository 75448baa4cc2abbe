// What the tests of the CUDA transport have in common.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "nccl/graphs.h"
#include "nccl/nccl_world.h"
#include "support/ending.h"
#include "support/ranks.h"

namespace fvd::test {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr DataType kFloats = DataType::kFloat32;
constexpr milliseconds kSoon{2000};  // the bound of docs/nccl.md, and what a loaded machine may add

class NcclCommunicatorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    set_faults({});
    take_log();
  }
  void TearDown() override {
    destroy_graphs();
    nccl::free_kept();
    EXPECT_EQ(open_groups(), 0);
    EXPECT_EQ(live_communicators(), 0);
    set_faults({});
  }

  static GroupOptions group(milliseconds timeout = std::chrono::seconds(60)) {
    return {"test", timeout, {}};
  }

  /// Runs `body` on each rank of a fresh group; what each of them ended with.
  using Body = std::function<std::string(Communicator& group, int rank)>;
  std::vector<Ending> run(int size, const Body& body, NcclCheck check = NcclCheck::kBeside,
                          GroupOptions options = group()) {
    NcclWorld world(size);
    return run(world, body, check, options);
  }
  std::vector<Ending> run(NcclWorld& world, const Body& body, NcclCheck check = NcclCheck::kBeside,
                          GroupOptions options = group()) {
    std::vector<Ending> endings(static_cast<std::size_t>(world.size()));
    run_threads(world.size(), [&](int rank) {
      endings[static_cast<std::size_t>(rank)] = ending_of([&] {
        const auto communicator = world.communicator(rank, options, check);
        return body(*communicator, rank);
      });
    });
    return endings;
  }
};

/// Waits until the group is broken, at most `limit`; what broke it.
inline Ending broken_within(Communicator& group, milliseconds limit) {
  const auto end = Clock::now() + limit;
  Ending ending;
  do {
    ending = ending_of([&] {
      group.check();
      return std::string("it is not broken");
    });
    if (!ending.returned) break;
    std::this_thread::sleep_for(milliseconds{5});
  } while (Clock::now() < end);
  return ending;
}

}  // namespace fvd::test
