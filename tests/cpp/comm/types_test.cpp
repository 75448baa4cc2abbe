#include "comm/types.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace fvd {
namespace {

/// The names of the enumerators 0 to `last`; each has to be there and be its own.
template <typename Enum>
void check_names(Enum last) {
  std::set<std::string> names;
  const int count = static_cast<int>(last) + 1;
  for (int value = 0; value < count; ++value) {
    const std::string word(name(static_cast<Enum>(value)));
    EXPECT_FALSE(word.empty()) << value;
    EXPECT_EQ(word.find("unknown"), std::string::npos) << value;
    names.insert(word);
  }
  EXPECT_EQ(names.size(), static_cast<std::size_t>(count));
  EXPECT_EQ(name(static_cast<Enum>(200)).substr(0, 7), "unknown");  // as bytes from outside may be
}

TEST(Types, EveryDataTypeHasItsOwnName) { check_names(DataType::kFloat8E8M0FNU); }
TEST(Types, EveryReductionHasItsOwnName) { check_names(ReduceKind::kPremulSum); }
TEST(Types, EveryOperationHasItsOwnName) { check_names(Op::kRecv); }

TEST(Types, EveryDataTypeHasASize) {
  for (int value = 0; value <= static_cast<int>(DataType::kFloat8E8M0FNU); ++value) {
    const std::size_t size = element_size(static_cast<DataType>(value));
    EXPECT_TRUE(size == 1 || size == 2 || size == 4 || size == 8 || size == 16) << value;
  }
  EXPECT_EQ(element_size(static_cast<DataType>(200)), 0u);
}

TEST(Types, SizesAreThoseOfTheNames) {
  EXPECT_EQ(element_size(DataType::kBool), 1u);
  EXPECT_EQ(element_size(DataType::kInt16), 2u);
  EXPECT_EQ(element_size(DataType::kBFloat16), 2u);
  EXPECT_EQ(element_size(DataType::kFloat32), 4u);
  EXPECT_EQ(element_size(DataType::kComplex32), 4u);
  EXPECT_EQ(element_size(DataType::kComplex64), 8u);
  EXPECT_EQ(element_size(DataType::kComplex128), 16u);
  EXPECT_EQ(element_size(DataType::kFloat8E5M2), 1u);
}

}  // namespace
}  // namespace fvd
