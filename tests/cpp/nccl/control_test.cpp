// How the calls of two ranks are compared beside them.
#include "nccl/control.h"

#include <gtest/gtest.h>

#include <barrier>

#include "nccl/nccl_world.h"
#include "support/ending.h"
#include "support/ranks.h"

namespace fvd::test {
namespace {

/// A caller enqueues tens of thousands of calls in a second, in which a watchdog looks 50 times.
TEST(NcclControlTest, ManyCallsAreComparedInFewLooks) {
  constexpr int kCalls = 3000;
  constexpr int kLooks = 20;
  ThreadWorld world(2);
  MemoryStore store;
  std::vector<Ending> endings(2);
  std::barrier together(2);
  run_threads(2, [&](int rank) {
    nccl::Context context;
    context.rank = rank;
    context.size = 2;
    context.group = {"test", std::chrono::seconds(20), {}};
    nccl::Control control(world.communicator(store, rank, context.group), context);
    for (int call = 1; call <= kCalls; ++call) {
      nccl::Record record{.sequence = static_cast<std::uint64_t>(call), .op = Op::kBarrier};
      if (rank == 1 && call == kCalls) record.op = Op::kAllReduce;
      control.note(record);
    }
    endings[static_cast<std::size_t>(rank)] = ending_of([&] {
      for (int look = 0; look < kLooks; ++look) {
        together.arrive_and_wait();
        std::optional<Error> found;
        try {
          control.look();
        } catch (const Error& error) {
          found = error;
          // As the watchdog does: the other may have to hear of it, its own look was too early.
          control.abort(error.kind(), error.what());
        }
        together.arrive_and_wait();
        if (found) throw *found;
      }
      return std::string("nothing was found");
    });
    together.arrive_and_drop();
  });
  for (const auto& ending : endings) {
    EXPECT_TRUE(ending.threw(Kind::kMismatch)) << ending;
    EXPECT_TRUE(ending.says("seq 3000")) << ending;
  }
}

}  // namespace
}  // namespace fvd::test
