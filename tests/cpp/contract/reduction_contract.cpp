// Promises of all_reduce, reduce and reduce_scatter.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

#include "contract/communicator_contract.h"

namespace fvd::test {
namespace {

constexpr DataType kFloats = DataType::kFloat32;
constexpr ReduceOp kSum{};

/// Rank `rank`'s element; sums of these depend on the order in which they are added.
float element(int rank, std::size_t index) {
  const auto bits = static_cast<std::uint32_t>((index * 2654435761u) ^
                                               (static_cast<std::uint32_t>(rank) * 40503u));
  const float value = static_cast<float>(bits % 100003) / 977.0f;
  return (bits & 1) != 0 ? value : -1000.0f * value;
}

std::vector<float> input(int rank, std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = element(rank, i);
  return values;
}

/// The one right answer: ranks added in order.
std::vector<float> sum_of(int size, std::size_t count) {
  std::vector<float> sum = input(0, count);
  for (int rank = 1; rank < size; ++rank) {
    for (std::size_t i = 0; i < count; ++i) sum[i] += element(rank, i);
  }
  return sum;
}

void require_same(const std::vector<float>& found, const std::vector<float>& wanted,
                  const std::string& what) {
  require(found.size() == wanted.size(), what, ": ", found.size(), " elements");
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    require(std::memcmp(&found[i], &wanted[i], sizeof(float)) == 0, what, ": element ", i, " of ",
            wanted.size(), " is ", found[i], " instead of ", wanted[i]);
  }
}

/// all_reduce of one value per rank of any type.
template <typename T>
T reduced(Communicator& group, T mine, DataType type, ReduceOp op) {
  T out{};
  group.all_reduce(&mine, &out, 1, type, op, {});
  return out;
}

std::uint16_t bfloat16(float value) {  // exact values only
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<std::uint16_t>(bits >> 16);
}

}  // namespace

TEST_P(CommunicatorContract, AllReduceAddsInTheOrderOfTheRanks) {
  run([this](Communicator& group) {
    for (std::size_t count : counts(sizeof(float))) {
      const auto in = input(group.rank(), count);
      std::vector<float> out(count, -1.0f);
      group.all_reduce(in.data(), out.data(), count, kFloats, kSum, {});
      require_same(out, sum_of(size(), count), "all_reduce");
      require_same(in, input(group.rank(), count), "the input");
    }
  });
}

TEST_P(CommunicatorContract, AllReduceWorksInPlace) {
  run([this](Communicator& group) {
    for (std::size_t count : counts(sizeof(float))) {
      auto values = input(group.rank(), count);
      group.all_reduce(values.data(), values.data(), count, kFloats, kSum, {});
      require_same(values, sum_of(size(), count), "in place");
    }
  });
}

TEST_P(CommunicatorContract, AllReduceTakesUnalignedMemory) {
  run([this](Communicator& group) {
    for (std::size_t count : counts(sizeof(float))) {
      const auto in = input(group.rank(), count);
      std::vector<std::byte> memory(count * sizeof(float) + 1);
      std::ranges::copy(std::as_bytes(std::span(in)), memory.begin() + 1);
      group.all_reduce(memory.data() + 1, memory.data() + 1, count, kFloats, kSum, {});
      std::vector<float> out(count);
      const auto result = std::as_writable_bytes(std::span(out));
      std::ranges::copy(std::span(memory).subspan(1), result.begin());
      require_same(out, sum_of(size(), count), "unaligned");
    }
  });
}

TEST_P(CommunicatorContract, ReduceWritesTheRootAlone) {
  run([this](Communicator& group) {
    int root = 0;
    for (std::size_t count : counts(sizeof(float))) {
      const auto in = input(group.rank(), count);
      std::vector<float> out(count, -1.0f);
      const bool here = group.rank() == root;
      group.reduce(in.data(), here ? out.data() : nullptr, count, kFloats, kSum, root, {});
      if (here) require_same(out, sum_of(size(), count), text("reduce to ", root));
      require_same(in, input(group.rank(), count), "the input");
      root = (root + 1) % size();
    }
  });
}

TEST_P(CommunicatorContract, ReduceScatterGivesEachRankItsPart) {
  run([this](Communicator& group) {
    const auto ranks = static_cast<std::size_t>(size());
    const auto me = static_cast<std::size_t>(group.rank());
    for (bool in_place : {false, true}) {
      for (std::size_t count : counts(sizeof(float))) {
        auto in = input(group.rank(), count * ranks);
        std::vector<ConstBlock> parts;
        for (std::size_t r = 0; r < ranks; ++r)
          parts.push_back(contiguous_block(static_cast<const void*>(in.data() + r * count),
                                           count * sizeof(float)));
        std::vector<float> apart(count);
        float* out = in_place ? in.data() + me * count : apart.data();
        group.reduce_scatter(parts, out, kFloats, kSum, {});
        const auto whole = sum_of(size(), count * ranks);
        require_same({out, out + count},
                     {whole.begin() + static_cast<std::ptrdiff_t>(me * count),
                      whole.begin() + static_cast<std::ptrdiff_t>((me + 1) * count)},
                     in_place ? "reduce_scatter in place" : "reduce_scatter");
      }
    }
  });
}

TEST_P(CommunicatorContract, ReduceScatterReadsStridedBlocks) {
  run([this](Communicator& group) {
    // [rows, columns], the columns divided among the ranks.
    const std::size_t ranks = static_cast<std::size_t>(size()), rows = 301, part = 11;
    const auto me = static_cast<std::size_t>(group.rank());
    const std::int64_t sizes[] = {static_cast<std::int64_t>(rows),
                                  static_cast<std::int64_t>(part * ranks)};
    const auto layout = BlockLayout::split(sizes, 1, sizeof(float), ranks);
    const auto in = input(group.rank(), rows * part * ranks),
               whole = sum_of(size(), rows * part * ranks);
    std::vector<ConstBlock> parts;
    for (std::size_t r = 0; r < ranks; ++r)
      parts.push_back(layout.block(static_cast<const void*>(in.data()), r));
    std::vector<float> out(rows * part), wanted;
    group.reduce_scatter(parts, out.data(), kFloats, kSum, {});
    for (std::size_t row = 0; row < rows; ++row) {
      for (std::size_t column = 0; column < part; ++column)
        wanted.push_back(whole[row * part * ranks + me * part + column]);
    }
    require_same(out, wanted, "reduce_scatter of columns");
  });
}

TEST_P(CommunicatorContract, EveryReduceOpMeansWhatItSays) {
  run([this](Communicator& group) {
    const int rank = group.rank(), last = size() - 1;
    std::int64_t product = 1, bits_or = 0, bits_xor = 0;
    for (int r = 0; r < size(); ++r) {
      product *= r + 2;
      bits_or |= std::int64_t{1} << r;
      bits_xor ^= 3 << r;
    }
    const std::int64_t triangle = std::int64_t{last} * size() / 2;
    const auto of = [&](std::int64_t mine, ReduceKind kind) {
      return reduced(group, mine, DataType::kInt64, {kind});
    };
    require(of(rank, ReduceKind::kSum) == triangle, "SUM");
    require(of(-rank * 2 - 1, ReduceKind::kAvg) == (-triangle * 2 - size()) / size(),
            "AVG truncates towards zero");
    require(of(rank + 2, ReduceKind::kProduct) == product, "PRODUCT");
    require(of(10 - rank, ReduceKind::kMin) == 10 - last, "MIN");
    require(of(rank - 10, ReduceKind::kMax) == last - 10, "MAX");
    if (GetParam().reduces_bits) {
      require(of(~(std::int64_t{1} << rank), ReduceKind::kBitAnd) == ~bits_or, "BAND");
      require(of(std::int64_t{1} << rank, ReduceKind::kBitOr) == bits_or, "BOR");
      require(of(3 << rank, ReduceKind::kBitXor) == bits_xor, "BXOR");
    }
    const double scaled =
        reduced(group, 1.0 + rank, DataType::kFloat64, {ReduceKind::kPremulSum, 0.25});
    require(scaled == 0.25 * static_cast<double>(triangle + size()), "PREMUL_SUM gave ", scaled);
  });
}

TEST_P(CommunicatorContract, NanPropagatesFromAnyRank) {
  run([this](Communicator& group) {
    for (int holder = 0; holder < size(); ++holder) {
      const float mine = group.rank() == holder ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
      for (ReduceKind kind : {ReduceKind::kMin, ReduceKind::kMax, ReduceKind::kSum})
        require(std::isnan(reduced(group, mine, kFloats, {kind})), name(kind),
                " lost the NaN of rank ", holder);
    }
  });
}

TEST_P(CommunicatorContract, HalfPrecisionIsAddedInFloat32AndRoundedOnce) {
  run([this](Communicator& group) {
    // 256 + 1 is no bfloat16: added step by step in bfloat16 the ones would be lost one after the
    // other.
    const std::uint16_t mine = bfloat16(group.rank() == 0 ? 256.0f : 1.0f);
    const std::uint16_t sum = reduced(group, mine, DataType::kBFloat16, kSum);
    const float wanted[] = {256, 256, 258, 260,
                            260, 260, 262, 262};  // by the number of ones; ties to even
    require(sum == bfloat16(wanted[size() - 1]), "256 + ", size() - 1, " gave the bits ", sum);
  });
}

TEST_P(CommunicatorContract, MovedTypesAreNotReduced) {
  run([](Communicator& group) {
    std::uint8_t in[4] = {1, 2, 3, 4}, out[4] = {9, 9, 9, 9};
    message_of(Kind::kUnsupported,
               [&] { group.all_reduce(in, out, 4, DataType::kFloat8E4M3FN, kSum, {}); });
    require(out[0] == 9, "the output was written");
    group.barrier({});  // still usable
  });
}

TEST_P(CommunicatorContract, MeaninglessReductionsAreRefused) {
  run([](Communicator& group) {
    float in = 1, out = 9;
    message_of(Kind::kInvalidArgument,
               [&] { group.all_reduce(&in, &out, 1, kFloats, {ReduceKind::kBitAnd}, {}); });
    require(out == 9, "the output was written");
    group.barrier({});
  });
}

}  // namespace fvd::test
