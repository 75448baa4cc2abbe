// The words of errors: who disagrees, who is missing, under which names.
#include <gtest/gtest.h>

#include <future>

#include "shm/fingerprint.h"
#include "support/thread_ranks.h"

namespace fvd::shm {
namespace {

using test::demand;
using test::Ending;
using test::ThreadRanks;

TEST(Report, CallsInWords) {
  EXPECT_EQ(describe(Record{.op = Op::kBarrier}), "barrier");
  EXPECT_EQ(describe(Record{.op = Op::kAllReduce,
                            .type = DataType::kFloat32,
                            .reduce = ReduceKind::kMax,
                            .has_type = true,
                            .has_reduce = true,
                            .count = 8}),
            "all_reduce(MAX, float32 x 8)");
  EXPECT_EQ(describe(Record{.op = Op::kReduce,
                            .type = DataType::kBFloat16,
                            .reduce = ReduceKind::kPremulSum,
                            .has_type = true,
                            .has_reduce = true,
                            .root = 3,
                            .count = 2,
                            .factor = 0.5}),
            "reduce(PREMUL_SUM 0.5, bfloat16 x 2, root 3)");
  EXPECT_EQ(describe(Record{
                .op = Op::kAllToAll, .type = DataType::kInt8, .has_type = true, .even = false}),
            "all_to_all(int8, uneven)");
}

TEST(Report, BytesThatNameNothingAreDescribedAllTheSame) {
  Record record{.op = static_cast<Op>(200),
                .type = static_cast<DataType>(200),
                .reduce = static_cast<ReduceKind>(200),
                .has_type = true,
                .has_reduce = true};
  EXPECT_EQ(describe(record).find("unknown"), 0U);
}

/// Three ranks of which each does what `body` says, with outputs that must not be touched.
std::vector<Ending> disagree(const std::function<void(Communicator&, float* out)>& body,
                             const GroupOptions& options = test::group_options("tp")) {
  ThreadRanks ranks(3);
  return ranks.run_group(
      [&](Communicator& group) {
        std::vector<float> out(64, -5);
        const Ending ending = test::ending_of([&] {
          body(group, out.data());
          return "";
        });
        demand(out == std::vector<float>(64, -5), "no output was touched");
        const Ending again = test::ending_of([&] {
          group.barrier({});
          return "";
        });
        demand(again.threw(Kind::kAborted), again.words);
        if (ending.kind) throw Error(*ending.kind, ending.words);
        return "returned";
      },
      options);
}

void expect_all_say(const std::vector<Ending>& endings, const std::string& words) {
  for (const Ending& ending : endings) {
    EXPECT_TRUE(ending.threw(Kind::kMismatch)) << ending;
    EXPECT_TRUE(ending.says(words)) << ending;
  }
}

const float kIn[64] = {};

TEST(Report, AMismatchNamesTheMinorityFirst) {
  expect_all_say(disagree([](Communicator& group, float* out) {
                   const ReduceKind kind = group.rank() == 1 ? ReduceKind::kMax : ReduceKind::kSum;
                   group.all_reduce(kIn, out, 8, DataType::kFloat32, {kind}, {});
                 }),
                 "rank 1 calls all_reduce(MAX, float32 x 8), but ranks 0, 2 call all_reduce(SUM, "
                 "float32 x 8)");
}

TEST(Report, AnotherCount) {
  expect_all_say(disagree([](Communicator& group, float* out) {
                   group.all_reduce(kIn, out, group.rank() == 2 ? 9 : 8, DataType::kFloat32, {},
                                    {});
                 }),
                 "rank 2 calls all_reduce(SUM, float32 x 9), but ranks 0, 1 call");
}

TEST(Report, SizesOnBothSidesOfALimit) {
  // One goes through the line, one through the one-shot area, one through the pipeline.
  const auto endings = disagree([](Communicator& group, float*) {
    std::vector<float> data(group.rank() == 0 ? 4 : group.rank() == 1 ? 500 : 100000, 1);
    group.all_reduce(data.data(), data.data(), data.size(), DataType::kFloat32, {}, {});
  });
  for (const char* size : {"x 4)", "x 500)", "x 100000)"}) expect_all_say(endings, size);
}

TEST(Report, AnotherOperationTypeOrRoot) {
  expect_all_say(disagree([](Communicator& group, float* out) {
                   if (group.rank() == 0) return group.barrier({});
                   group.all_reduce(kIn, out, 8, DataType::kFloat32, {}, {});
                 }),
                 "rank 0 calls barrier, but ranks 1, 2 call all_reduce");
  expect_all_say(disagree([](Communicator& group, float* out) {
                   const auto type = group.rank() == 0 ? DataType::kInt32 : DataType::kFloat32;
                   group.all_reduce(kIn, out, 8, type, {}, {});
                 }),
                 "rank 0 calls all_reduce(SUM, int32 x 8), but");
  expect_all_say(
      disagree([](Communicator& group, float* out) {
        const int root = group.rank() == 2 ? 1 : 0;
        group.broadcast(contiguous_block(static_cast<void*>(out), 32), DataType::kFloat32, root,
                        {});
      }),
      "rank 2 calls broadcast(float32 x 8, root 1), but ranks 0, 1 call broadcast(float32 "
      "x 8, root 0)");
}

TEST(Report, AMismatchSaysWhereAndTheWayOut) {
  const auto endings = disagree([](Communicator& group, float* out) {
    group.all_reduce(kIn, out, group.rank() == 2 ? 9 : 8, DataType::kFloat32, {}, {});
  });
  expect_all_say(endings, "seq 1");
  expect_all_say(endings, "group \"tp\"");
  expect_all_say(endings, "No output was touched");
  expect_all_say(endings, "destroy_process_group() and init again");
}

TEST(Report, GlobalRanksAreNamedWhereTheyDiffer) {
  ThreadRanks ranks(2);
  GroupOptions options = test::group_options("tp");
  options.global_ranks = {4, 6};
  std::promise<void> joined;
  std::promise<void> over;
  const auto endings = ranks.run_group(
      [&](Communicator& group) -> std::string {
        if (group.rank() == 1) {
          joined.get_future().wait_for(std::chrono::seconds(10));
          group.abort("tired");
          over.get_future().wait_for(std::chrono::seconds(10));
          return "";
        }
        joined.set_value();
        const Ending ending = test::ending_of([&] {
          group.barrier({});
          return "";
        });
        over.set_value();
        return ending.words;
      },
      options);
  EXPECT_TRUE(endings[0].says("rank 1 (global rank 6, pid ")) << endings[0];
}

TEST(Report, ATimeoutCountsWhoArrivedAndNamesWhoDidNot) {
  ThreadRanks ranks(4);
  std::promise<void> over;
  auto all_over = over.get_future().share();
  std::atomic<int> left{2};
  const auto endings = ranks.run_group([&](Communicator& group) {
    if (group.rank() % 2 == 1) {
      all_over.wait_for(std::chrono::seconds(10));
      return std::string();
    }
    std::int32_t value = 1;
    const Ending ending = test::ending_of([&] {
      Call call;
      call.timeout = std::chrono::milliseconds(100 + 300 * group.rank());
      group.all_reduce(&value, &value, 1, DataType::kInt32, {}, call);
      return "";
    });
    if (--left == 0) over.set_value();
    demand(ending.threw(Kind::kTimeout), ending.words);
    return ending.words;
  });
  for (const std::size_t rank : {0U, 2U}) {
    const Ending& ending = endings[rank];
    ASSERT_TRUE(ending.returned) << ending;
    EXPECT_TRUE(ending.says("all_reduce(SUM, int32 x 1) seq 1 on group \"test\"")) << ending;
    EXPECT_TRUE(ending.says("missing: rank 1")) << ending;
    EXPECT_TRUE(ending.says("missing: rank 3")) << ending;
    EXPECT_TRUE(ending.says("last finished: nothing yet")) << ending;
    EXPECT_FALSE(ending.says("missing: rank 0") || ending.says("missing: rank 2")) << ending;
  }
  EXPECT_TRUE(endings[0].says("(2 of 4 ranks arrived), waited 0.1 s of 0.1 s")) << endings[0];
}

}  // namespace
}  // namespace fvd::shm
