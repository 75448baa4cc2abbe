// How soon a death is noticed, with nothing else to do on the machine.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "support/process_world.h"

namespace fvd::shm {
namespace {

using test::ForkedRank;
using test::ForkedRanks;

class TimedForkedDeath : public test::ForkedTest {};

/// Seconds between the end of rank 1 and the error of rank 0, which is in a call of `count` floats.
double seconds_to_notice(std::size_t count) {
  ForkedRanks ranks(2, [&](ForkedRank& rank) {
    const auto communicator = rank.join();
    std::vector<float> values(count, 1);
    communicator->barrier({});
    if (rank.rank == 1) {
      rank.say("ready");
      pause();
    }
    while (true) {
      communicator->all_reduce(values.data(), values.data(), count, DataType::kFloat32, {}, {});
    }
    return std::string();
  });
  ranks.await("ready");
  const auto killed = ranks.signal(1, SIGKILL);
  const auto ending = ranks.ending(0);
  EXPECT_TRUE(ending.threw(Kind::kPeerLost)) << ending;
  return test::seconds_between(killed, ending.at);
}

// The bound is promised for an idle machine; the median forgives a neighbour for four deaths.
TEST_F(TimedForkedDeath, TheMedianOfNineIsNoticedWithinAHundredMilliseconds) {
  if (test::kSanitized) GTEST_SKIP() << "sanitizers slow the notice down";
  for (const std::size_t count : {std::size_t{1}, std::size_t{1} << 20}) {
    std::vector<double> seconds;
    for (int i = 0; i < 9; ++i) seconds.push_back(seconds_to_notice(count));
    std::sort(seconds.begin(), seconds.end());
    EXPECT_LT(seconds[4], 0.1) << "with " << count << " elements";
  }
}

}  // namespace
}  // namespace fvd::shm
