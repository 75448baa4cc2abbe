#include "shm/reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "comm/error.h"
#include "shm/reduce_reference.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fvd::shm {
namespace {

template <typename T>
std::vector<T> reduced(const std::vector<std::vector<T>>& in, DataType type, ReduceOp op) {
  std::vector<const void*> sources;
  for (const auto& one : in) sources.push_back(one.data());
  std::vector<T> out(in[0].size());
  reduce(out.data(), sources, out.size(), type, op);
  return out;
}

TEST(Reduce, IntegersWrap) {
  const std::vector<std::vector<std::int8_t>> in{{100, -100}, {100, -100}};
  EXPECT_EQ(reduced(in, DataType::kInt8, {}), (std::vector<std::int8_t>{-56, 56}));
}

TEST(Reduce, AverageOfIntegersTruncatesTowardsZero) {
  const std::vector<std::vector<std::int32_t>> in{{-3, 3, 7}, {-4, 4, 0}};
  const ReduceOp avg{ReduceKind::kAvg};
  EXPECT_EQ(reduced(in, DataType::kInt32, avg), (std::vector<std::int32_t>{-3, 3, 3}));
}

TEST(Reduce, AverageOfMoreRanksThanTheTypeCanCount) {
  const std::vector<std::vector<std::int8_t>> in(128, {-1, 1});  // the sum of 128 ones wraps
  const ReduceOp avg{ReduceKind::kAvg};
  EXPECT_EQ(reduced(in, DataType::kInt8, avg), (std::vector<std::int8_t>{-1, -1}));
}

TEST(Reduce, HalfSumsRoundOnce) {
  // Step by step in float16, 2048 + 1 would stay 2048 each time.
  const auto bits = [](float x) { return test::encode(test::kHalf, x); };
  const std::vector<std::vector<std::uint16_t>> in{{bits(2048)}, {bits(1)}, {bits(1)}, {bits(1)}};
  EXPECT_EQ(reduced(in, DataType::kFloat16, {})[0], bits(2052));  // 2051 is a tie: to even
}

TEST(Reduce, NanWinsWhoeverHoldsIt) {
  const float nan = std::nanf("");
  for (const ReduceKind kind : {ReduceKind::kMin, ReduceKind::kMax}) {
    for (std::size_t holder = 0; holder < 4; ++holder) {
      for (const std::size_t count : {1, 4, 40}) {
        std::vector<std::vector<float>> in(4, std::vector<float>(count, 1.0f));
        std::vector<std::vector<double>> wide(4, std::vector<double>(count, 1.0));
        std::vector<std::vector<std::uint16_t>> half(4, std::vector<std::uint16_t>(count, 0x3c00));
        in[holder].back() = nan;
        wide[holder].back() = nan;
        half[holder].back() = 0x7e00;
        EXPECT_TRUE(std::isnan(reduced(in, DataType::kFloat32, {kind}).back()));
        EXPECT_TRUE(std::isnan(reduced(wide, DataType::kFloat64, {kind}).back()));
        EXPECT_EQ(reduced(half, DataType::kFloat16, {kind}).back() & 0x7e00, 0x7e00);
        half[holder].back() = 0x7fc0;
        EXPECT_EQ(reduced(half, DataType::kBFloat16, {kind}).back() & 0x7fc0, 0x7fc0);
      }
    }
  }
}

TEST(Reduce, NothingToDo) {
  const void* none[] = {nullptr, nullptr};
  EXPECT_NO_THROW(reduce(nullptr, none, 0, DataType::kFloat32, {}));
}

#if defined(__x86_64__)
TEST(Reduce, IgnoresTheThreadsRoundingAndFlushing) {
  const std::vector<std::vector<float>> in{{0x1p-130f, 1.0f}, {0x1p-130f, 0x1p-24f}};
  const std::vector<float> usual = reduced(in, DataType::kFloat32, {});
  const unsigned before = _mm_getcsr();
  const unsigned odd = before | 0x8040 | 0x4000;  // flush to zero, no subnormals, round up
  _mm_setcsr(odd);
  const std::vector<float> result = reduced(in, DataType::kFloat32, {});
  const unsigned after = _mm_getcsr();
  _mm_setcsr(before);
  EXPECT_EQ(result, usual);
  EXPECT_EQ(result[0], 0x1p-129f);
  EXPECT_EQ(after & ~0x3fu, odd & ~0x3fu);
}
#endif

template <typename Body>
Error thrown_by(Body body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "nothing was thrown";
  return Error(Kind::kSystem, "");
}

TEST(Reduce, RefusesWhatHasNoMeaning) {
  const Error moved = thrown_by([] { check_reducible(DataType::kFloat8E5M2, ReduceKind::kSum); });
  EXPECT_EQ(moved.kind(), Kind::kUnsupported);
  EXPECT_STREQ(moved.what(),
               "SUM of float8_e5m2 is not possible: this dtype can be moved but not reduced; "
               "convert the tensor to a wider dtype first");
  const Error bits = thrown_by([] { check_reducible(DataType::kFloat32, ReduceKind::kBitAnd); });
  EXPECT_EQ(bits.kind(), Kind::kInvalidArgument);
  EXPECT_STREQ(bits.what(),
               "BAND has no meaning for float32; possible are SUM, AVG, PRODUCT, MIN, MAX and "
               "PREMUL_SUM");
  const Error empty = thrown_by([] { reduce(nullptr, {}, 1, DataType::kFloat32, {}); });
  EXPECT_EQ(empty.kind(), Kind::kInvalidArgument);
}

TEST(Reduce, EveryCombinationIsReducedOrRefused) {
  for (const DataType type : test::kAllTypes) {
    for (const ReduceKind kind : test::kAllKinds) {
      const std::vector<std::byte> in(64);
      std::vector<std::byte> out(64);
      const void* sources[] = {in.data(), in.data()};
      const auto call = [&] { reduce(out.data(), sources, 3, type, {kind}); };
      if (reducible(type, kind)) {
        EXPECT_NO_THROW(call()) << name(kind) << " of " << name(type);
      } else {
        EXPECT_THROW(call(), Error) << name(kind) << " of " << name(type);
      }
    }
  }
}

TEST(Reduce, PremulSumAndAverageOnlyWhereTheyAreExact) {
  EXPECT_FALSE(reducible(DataType::kInt32, ReduceKind::kPremulSum));
  EXPECT_FALSE(reducible(DataType::kBool, ReduceKind::kAvg));
  EXPECT_FALSE(reducible(DataType::kComplex64, ReduceKind::kMax));
  EXPECT_FALSE(reducible(DataType::kComplex32, ReduceKind::kSum));
  EXPECT_TRUE(reducible(DataType::kComplex128, ReduceKind::kPremulSum));
  EXPECT_TRUE(reducible(DataType::kBool, ReduceKind::kSum));
}

}  // namespace
}  // namespace fvd::shm
