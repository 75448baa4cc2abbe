// Every set of kernels this processor can run, bit by bit against the reference.
#include "shm/reduce_kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "comm/error.h"
#include "shm/reduce.h"
#include "shm/reduce_reference.h"
#include "support/guarded_memory.h"

namespace fvd::shm {
namespace {

using test::GuardedMemory;

using Memory = std::vector<std::byte>;

struct Case {
  DataType type;
  ReduceOp op;
  std::size_t sources;
  std::size_t count;

  std::string describe() const {
    return text(name(op.kind), " of ", count, " ", name(type), " from ", sources, " sources");
  }
};

/// Random bytes are random numbers of every magnitude, with NaN, infinity and subnormals among
/// them; every second source holds numbers near 1, so that sums round and do not just overflow.
Memory contribution(std::mt19937_64& random, DataType type, std::size_t bytes, bool near_one) {
  Memory memory(bytes);
  for (std::byte& byte : memory) byte = static_cast<std::byte>(random());
  if (type == DataType::kBool) {
    for (std::byte& byte : memory) byte &= std::byte{2};  // any byte but 0 is true
  }
  if (!near_one) return memory;
  std::normal_distribution<double> normal;
  const bool narrow = type == DataType::kFloat32 || type == DataType::kComplex64;
  const bool wide = type == DataType::kFloat64 || type == DataType::kComplex128;
  for (std::size_t i = 0; i < bytes / 2 && type == DataType::kFloat16; ++i) {
    test::write(memory.data(), i, test::encode(test::kHalf, float(normal(random))));
  }
  for (std::size_t i = 0; i < bytes / 2 && type == DataType::kBFloat16; ++i) {
    test::write(memory.data(), i, test::encode(test::kBrain, float(normal(random))));
  }
  for (std::size_t i = 0; i < bytes / 4 && narrow; ++i) {
    test::write(memory.data(), i, float(normal(random)));
  }
  for (std::size_t i = 0; i < bytes / 8 && wide; ++i) test::write(memory.data(), i, normal(random));
  return memory;
}

/// With every NaN replaced by one of them.
Memory without_payloads(Memory memory, DataType type) {
  const std::size_t bytes = memory.size();
  void* data = memory.data();
  for (std::size_t i = 0; i < bytes / 2; ++i) {
    const auto bits = test::read<std::uint16_t>(data, i);
    if (type == DataType::kFloat16 && (bits & 0x7fff) > 0x7c00)
      test::write(data, i, uint16_t(0x7e00));
    if (type == DataType::kBFloat16 && (bits & 0x7fff) > 0x7f80)
      test::write(data, i, uint16_t(0x7fc0));
  }
  if (type == DataType::kFloat32 || type == DataType::kComplex64) {
    for (std::size_t i = 0; i < bytes / 4; ++i) {
      if (std::isnan(test::read<float>(data, i))) test::write(data, i, std::nanf(""));
    }
  }
  if (type == DataType::kFloat64 || type == DataType::kComplex128) {
    for (std::size_t i = 0; i < bytes / 8; ++i) {
      if (std::isnan(test::read<double>(data, i))) test::write(data, i, std::nan(""));
    }
  }
  return memory;
}

std::vector<Memory> contributions(const Case& c) {
  std::mt19937_64 random(c.count * 1000 + c.sources);
  std::vector<Memory> memories;
  for (std::size_t s = 0; s < c.sources; ++s) {
    memories.push_back(contribution(random, c.type, c.count * element_size(c.type),
                                    s % 2 == 1 || c.count % 2 == 1));
  }
  return memories;
}

std::vector<const void*> addresses(const std::vector<Memory>& memories) {
  std::vector<const void*> result;
  for (const Memory& memory : memories) result.push_back(memory.data());
  return result;
}

Memory expected(const Case& c, const std::vector<Memory>& inputs) {
  Memory out(c.count * element_size(c.type));
  test::reference(out.data(), addresses(inputs), c.count, c.type, c.op);
  return without_payloads(out, c.type);
}

/// The first byte that differs, for messages; -1 if none.
std::ptrdiff_t difference(const Memory& a, const Memory& b) {
  const auto [left, right] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
  return left == a.end() && right == b.end() ? -1 : left - a.begin();
}

/// Of every instruction set this processor has.
class ReduceOnIsa : public testing::TestWithParam<Isa> {
 protected:
  void SetUp() override {
    table_ = kernels(GetParam());
    if (table_ == nullptr) GTEST_SKIP() << "this processor has no such instructions";
  }

  void check(const Case& c) {
    const std::vector<Memory> inputs = contributions(c);
    const std::vector<const void*> sources = addresses(inputs);
    Memory out(c.count * element_size(c.type));
    reduce_with(table_, out.data(), sources.data(), c.sources, c.count, c.type, c.op);
    ASSERT_EQ(difference(without_payloads(out, c.type), expected(c, inputs)), -1) << c.describe();
  }

  KernelTable table_ = nullptr;
};

TEST_P(ReduceOnIsa, EqualsTheReferenceBitByBit) {
  for (const DataType type : test::kAllTypes) {
    for (const ReduceKind kind : test::kAllKinds) {
      if (!reducible(type, kind)) continue;
      for (const std::size_t sources : {1, 2, 3, 8}) {
        for (const std::size_t count : {1, 2, 3, 5, 7, 8, 15, 17, 31, 65, 300}) {
          check({type, {kind, 0.3}, sources, count});
          if (HasFatalFailure()) return;
        }
      }
      check({type, {kind, -1e-3}, 65, 77});
    }
  }
}

TEST_P(ReduceOnIsa, ConvertsEveryHalfAndRoundsToNearestEven) {
  std::vector<std::uint16_t> in(65536);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint16_t>(i);
  const void* source = in.data();
  for (const DataType type : {DataType::kFloat16, DataType::kBFloat16}) {
    // The factors reach ties, the border to subnormals, overflow and results that vanish.
    for (const double factor : {1.0, 1.5, 1.0 / 3, 0x1.004p0, 0x1.01p0, 0.5, 0x1p-10, 0x1.8p-14,
                                0x1p-24, 0x1p-40, 3.0, 1e4, -7.0}) {
      const ReduceOp op{ReduceKind::kPremulSum, factor};
      Memory out(2 * in.size());
      Memory want(2 * in.size());
      reduce_with(table_, out.data(), &source, 1, in.size(), type, op);
      test::reference(want.data(), {source}, in.size(), type, op);
      ASSERT_EQ(difference(without_payloads(out, type), without_payloads(want, type)), -1)
          << name(type) << " times " << factor;
    }
  }
}

TEST_P(ReduceOnIsa, OutMayBeAnySource) {
  for (const DataType type : {DataType::kInt16, DataType::kBFloat16, DataType::kFloat16,
                              DataType::kFloat32, DataType::kComplex64, DataType::kInt8}) {
    for (const ReduceKind kind : {ReduceKind::kSum, ReduceKind::kAvg, ReduceKind::kProduct}) {
      const Case c{type, {kind}, 4, 5001};
      const Memory want = expected(c, contributions(c));
      for (std::size_t alias = 0; alias < c.sources; ++alias) {
        std::vector<Memory> inputs = contributions(c);
        const std::vector<const void*> sources = addresses(inputs);
        reduce_with(table_, inputs[alias].data(), sources.data(), c.sources, c.count, type, c.op);
        ASSERT_EQ(difference(without_payloads(inputs[alias], type), want), -1)
            << c.describe() << " into source " << alias;
      }
    }
  }
}

TEST_P(ReduceOnIsa, NeedsNoAlignmentAndStaysInBounds) {
  for (const DataType type : test::kAllTypes) {
    if (!reducible(type, ReduceKind::kSum)) continue;
    for (std::size_t count = 0; count < 150; ++count) {
      const Case c{type, {ReduceKind::kSum}, 2, count};
      const std::size_t bytes = count * element_size(type);
      std::vector<Memory> inputs = contributions(c);
      GuardedMemory a(4096), b(4096), out(4096);
      std::byte* low = a.begin();  // one source ends at a guard, one begins at a guard
      std::byte* high = b.last(bytes);
      std::byte* result = out.last(bytes);
      if (count % 3 == 1 && bytes > 0) low = a.begin() + 1;
      std::copy(inputs[0].begin(), inputs[0].end(), low);
      std::copy(inputs[1].begin(), inputs[1].end(), high);
      if (bytes > 0) *(result - 1) = std::byte{0x5a};
      const void* sources[] = {low, high};
      reduce_with(table_, result, sources, 2, count, type, c.op);
      ASSERT_EQ(
          difference(without_payloads(Memory(result, result + bytes), type), expected(c, inputs)),
          -1)
          << c.describe();
      if (bytes > 0) {
        ASSERT_EQ(*(result - 1), std::byte{0x5a});
      }
    }
  }
}

TEST_P(ReduceOnIsa, CuttingATensorChangesNoBit) {
  for (const DataType type : {DataType::kFloat16, DataType::kBFloat16, DataType::kFloat32}) {
    const Case c{type, {ReduceKind::kAvg}, 5, 1000};
    const std::vector<Memory> inputs = contributions(c);
    const std::size_t size = element_size(type);
    Memory out(c.count * size);
    for (std::size_t at = 0, piece = 1; at < c.count; at += piece, piece = piece * 2 + 1) {
      std::vector<const void*> sources;
      for (const Memory& in : inputs) sources.push_back(in.data() + at * size);
      reduce_with(table_, out.data() + at * size, sources.data(), c.sources,
                  std::min(piece, c.count - at), type, c.op);
    }
    EXPECT_EQ(difference(without_payloads(out, type), expected(c, inputs)), -1) << name(type);
  }
}

std::string isa_name(const testing::TestParamInfo<Isa>& info) {
  constexpr const char* kNames[] = {"Portable", "Avx2", "Avx512"};
  return kNames[static_cast<std::size_t>(info.param)];
}
INSTANTIATE_TEST_SUITE_P(All, ReduceOnIsa, testing::ValuesIn(kAllIsas), isa_name);

}  // namespace
}  // namespace fvd::shm
