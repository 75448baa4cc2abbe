// Each pair of reduction and dtype is decided, and factors have the right bits.
#include "nccl/wire.h"

#include <gtest/gtest.h>

#include <cstring>

#include "support/ending.h"

namespace fvd::test {
namespace {

using nccl::WireOp;
using nccl::WireType;

constexpr int kTypes = static_cast<int>(DataType::kFloat8E8M0FNU) + 1;
constexpr int kKinds = static_cast<int>(ReduceKind::kPremulSum) + 1;

/// One letter for each kind of reduction in the order of ReduceKind: `y`es, `v`alue error, `n`ot
/// implemented.
std::string decisions(DataType type) {
  std::string letters;
  for (int kind = 0; kind < kKinds; ++kind) {
    const auto ending = ending_of([&] {
      nccl::wire_reduction(type, {static_cast<ReduceKind>(kind)});
      return std::string();
    });
    letters += ending.returned                        ? 'y'
               : ending.threw(Kind::kInvalidArgument) ? 'v'
               : ending.threw(Kind::kUnsupported)     ? 'n'
                                                      : '?';
  }
  return letters;
}

TEST(Wire, EveryReductionIsDecided) {
  // SUM, AVG, PRODUCT, MIN, MAX, BAND, BOR, BXOR, PREMUL_SUM
  for (int number = 0; number < kTypes; ++number) {
    const auto type = static_cast<DataType>(number);
    std::string wanted;
    switch (type) {
      case DataType::kBool:
        wanted = "yvyyyyynv";
        break;
      case DataType::kUInt16:
      case DataType::kInt16:
        wanted = "nnnnnnnnv";
        break;
      case DataType::kUInt8:
      case DataType::kInt8:
      case DataType::kUInt32:
      case DataType::kInt32:
      case DataType::kUInt64:
      case DataType::kInt64:
        wanted = "yyyyynnnv";
        break;
      case DataType::kFloat16:
      case DataType::kBFloat16:
      case DataType::kFloat32:
      case DataType::kFloat64:
        wanted = "yyyyyvvvy";
        break;
      case DataType::kComplex64:
      case DataType::kComplex128:
        wanted = "yynvvvvvy";
        break;
      default:
        wanted = "nnnnnnnnn";
    }
    EXPECT_EQ(decisions(type), wanted) << name(type);
  }
}

TEST(Wire, TruthValuesAreReducedAsTheSmallestAndLargest) {
  const auto op = [](ReduceKind kind) { return nccl::wire_reduction(DataType::kBool, {kind}).op; };
  EXPECT_EQ(op(ReduceKind::kSum), WireOp::kMax);
  EXPECT_EQ(op(ReduceKind::kProduct), WireOp::kMin);
  EXPECT_EQ(op(ReduceKind::kBitOr), WireOp::kMax);
  EXPECT_EQ(op(ReduceKind::kBitAnd), WireOp::kMin);
}

TEST(Wire, AComplexNumberIsTwoRealOnes) {
  const auto wire = nccl::wire_reduction(DataType::kComplex64, {ReduceKind::kSum});
  EXPECT_EQ(wire.type, WireType::kFloat32);
  EXPECT_EQ(wire.per_element, 2u);
}

std::uint64_t bits(double value, WireType type) {
  std::uint64_t all = 0;
  std::memcpy(&all, nccl::wire_scalar({ReduceKind::kPremulSum, value}, type).bytes, sizeof(all));
  return all;
}

std::uint64_t bits_of_multiplier(std::uint64_t value, WireType type) {
  std::uint64_t all = 0;
  const ReduceOp op{ReduceKind::kPremulSum, 1.0, value};
  std::memcpy(&all, nccl::wire_scalar(op, type).bytes, sizeof(all));
  return all;
}

TEST(Wire, IntegersArePremultipliedByIntegersOnly) {
  const ReduceOp op{ReduceKind::kPremulSum, 1.0, std::uint64_t{3}};
  const auto wire = nccl::wire_reduction(DataType::kInt32, op);
  EXPECT_EQ(wire.type, WireType::kInt32);
  EXPECT_TRUE(wire.premultiplied);
  EXPECT_EQ(bits_of_multiplier(3, WireType::kInt32), 3u);
  EXPECT_EQ(bits_of_multiplier(0x8000000000000001u, WireType::kInt64), 0x8000000000000001u);
  const auto refused = [](DataType type) {
    return ending_of([&] {
      nccl::wire_reduction(type, {ReduceKind::kPremulSum, 1.0, std::uint64_t{3}});
      return std::string();
    });
  };
  EXPECT_TRUE(refused(DataType::kBool).threw(Kind::kInvalidArgument));
  EXPECT_TRUE(refused(DataType::kInt16).threw(Kind::kUnsupported));
}

TEST(Wire, FactorsAreRoundedToTheNearest) {
  EXPECT_EQ(bits(0.5, WireType::kFloat64), 0x3fe0000000000000u);
  EXPECT_EQ(bits(0.5, WireType::kFloat32), 0x3f000000u);
  EXPECT_EQ(bits(1.0 / 3, WireType::kBFloat16), 0x3eabu);
  EXPECT_EQ(bits(-2.0, WireType::kBFloat16), 0xc000u);
  EXPECT_EQ(bits(1.0, WireType::kFloat16), 0x3c00u);
  EXPECT_EQ(bits(1.0 / 3, WireType::kFloat16), 0x3555u);
  EXPECT_EQ(bits(0.0, WireType::kFloat16), 0u);
  EXPECT_EQ(bits(-0.125, WireType::kFloat16), 0xb000u);
  EXPECT_EQ(bits(65504.0, WireType::kFloat16), 0x7bffu);
  EXPECT_EQ(bits(65520.0, WireType::kFloat16), 0x7c00u);  // infinity
  EXPECT_EQ(bits(0x1p-24, WireType::kFloat16), 1u);       // the smallest
  EXPECT_EQ(bits(0x1p-14, WireType::kFloat16), 0x0400u);  // the smallest normal one
  EXPECT_EQ(bits(2047.9, WireType::kFloat16), 0x6800u);   // a carry: 2048
}

TEST(Wire, ARecordSaysWhatTheCallIs) {
  nccl::Record record;
  record.op = Op::kAllReduce;
  record.type = DataType::kFloat32;
  record.reduce = ReduceKind::kPremulSum;
  record.has_type = record.has_reduce = 1;
  record.factor = 0.5;
  record.count = 12;
  const std::string words = nccl::describe(record);
  EXPECT_NE(words.find("all_reduce("), std::string::npos) << words;
  EXPECT_NE(words.find("0.5"), std::string::npos) << words;
  EXPECT_NE(words.find("float32 x 12"), std::string::npos) << words;
}

}  // namespace
}  // namespace fvd::test
