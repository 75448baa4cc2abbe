#include "shm/copy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "comm/error.h"
#include "support/guarded_memory.h"

namespace fvd::shm {
namespace {

using test::GuardedMemory;
using Bytes = std::vector<std::byte>;

constexpr CacheHint kHints[] = {CacheHint::kCached, CacheHint::kStreaming};
constexpr std::byte kUntouched{0xa5};

/// runs, bytes of a run, bytes between runs.
struct Shape {
  std::size_t runs;
  std::size_t run_bytes;
  std::size_t gap;

  std::size_t stride() const { return run_bytes + gap; }
  std::size_t bytes() const { return runs * run_bytes; }
  std::size_t span() const { return runs == 0 ? 0 : (runs - 1) * stride() + run_bytes; }
  std::string describe() const { return text(runs, " runs of ", run_bytes, " every ", stride()); }
};

Bytes random_bytes(std::size_t count) {
  std::mt19937_64 random(count + 1);
  Bytes bytes(count);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

/// Memory for a block, at its very beginning or its very end next to a page nobody may touch.
class Place {
 public:
  Place(const Shape& shape, std::size_t shift, bool at_end)
      : shape_(shape), memory_(shape.span() + shift + 1) {
    data_ = at_end ? memory_.last(shape.span()) : memory_.begin() + shift;
    std::fill(data_, data_ + shape.span(), kUntouched);
  }

  Block block() { return {data_, shape_.runs, shape_.run_bytes, shape_.stride()}; }
  ConstBlock const_block() { return {data_, shape_.runs, shape_.run_bytes, shape_.stride()}; }

  void write(const Bytes& content) {
    for (std::size_t i = 0; i < content.size(); ++i) at(i) = content[i];
  }
  /// The runs end to end.
  Bytes content() {
    Bytes bytes(shape_.bytes());
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = at(i);
    return bytes;
  }
  bool gaps_untouched() {
    for (std::size_t i = 0; i < shape_.span(); ++i) {
      if (i % shape_.stride() >= shape_.run_bytes && data_[i] != kUntouched) return false;
    }
    return true;
  }

 private:
  std::byte& at(std::size_t i) {
    return data_[i / shape_.run_bytes * shape_.stride() + i % shape_.run_bytes];
  }

  Shape shape_;
  GuardedMemory memory_;
  std::byte* data_;
};

void check_copy(const Shape& to, const Shape& from, CacheHint hint, bool at_end) {
  const Bytes bytes = random_bytes(from.bytes());
  Place source(from, 1, at_end);
  Place target(to, 3, at_end);
  source.write(bytes);
  copy(target.block(), source.const_block(), hint);
  ASSERT_EQ(target.content(), bytes) << from.describe() << " into " << to.describe();
  ASSERT_TRUE(target.gaps_untouched()) << from.describe() << " into " << to.describe();
}

TEST(Copy, SmallShapesExhaustively) {
  for (std::size_t bytes = 1; bytes <= 24; ++bytes) {
    for (std::size_t to_run = 1; to_run <= bytes; ++to_run) {
      for (std::size_t from_run = 1; from_run <= bytes; ++from_run) {
        if (bytes % to_run != 0 || bytes % from_run != 0) continue;
        for (const std::size_t gap : {0, 1, 5}) {
          for (const CacheHint hint : kHints) {
            check_copy({bytes / to_run, to_run, gap}, {bytes / from_run, from_run, 3}, hint, false);
            check_copy({bytes / to_run, to_run, gap}, {bytes / from_run, from_run, 0}, hint, true);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(Copy, EveryRunLengthUpToTheLongOnes) {
  for (std::size_t run = 1; run <= 600; ++run) {
    for (const CacheHint hint : kHints) {
      check_copy({3, run, 7}, {3, run, 64}, hint, run % 2 == 0);
      check_copy({3, run, 0}, {3, run, 9}, hint, run % 2 == 1);
      check_copy({3, run, 11}, {1, 3 * run, 0}, hint, true);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Copy, RunsThatDoNotDivideEachOther) {
  check_copy({6, 10, 2}, {4, 15, 1}, CacheHint::kCached, true);
  check_copy({4, 15, 2}, {6, 10, 1}, CacheHint::kStreaming, true);
  check_copy({35, 144, 16}, {45, 112, 80}, CacheHint::kCached, false);
  check_copy({3, 2000, 48}, {5, 1200, 80}, CacheHint::kStreaming, false);
}

TEST(Copy, StreamedLinesAtEveryOffset) {
  for (std::size_t shift = 0; shift < 70; ++shift) {
    for (const std::size_t run : {64, 128, 512, 576, 1000, 5000}) {
      const Shape to{4, run, 64};
      const Shape from{4, run, 0};
      const Bytes bytes = random_bytes(from.bytes());
      Place source(from, shift / 2, false);
      Place target(to, shift, false);
      source.write(bytes);
      copy(target.block(), source.const_block(), CacheHint::kStreaming);
      ASSERT_EQ(target.content(), bytes) << to.describe() << " at " << shift;
      ASSERT_TRUE(target.gaps_untouched()) << to.describe() << " at " << shift;
    }
  }
}

TEST(Copy, NothingToMove) {
  for (const CacheHint hint : kHints) {
    copy(Block{}, ConstBlock{}, hint);
    copy(Block{nullptr, 0, 8, 8}, ConstBlock{nullptr, 5, 0, 0}, hint);
    copy_range(static_cast<std::byte*>(nullptr), ConstBlock{}, 0, 0, hint);
    copy_range(Block{}, 0, static_cast<const std::byte*>(nullptr), 0, hint);
  }
  std::byte byte{};
  copy_range(&byte, ConstBlock{&byte, 1, 1, 1}, 1, 0);  // at the end
}

void check_range_copy(const Shape& shape, std::size_t offset, std::size_t bytes, CacheHint hint) {
  const Bytes all = random_bytes(shape.bytes());
  const Bytes part(all.begin() + static_cast<std::ptrdiff_t>(offset),
                   all.begin() + static_cast<std::ptrdiff_t>(offset + bytes));
  Place place(shape, 5, true);
  GuardedMemory line(bytes + 1);

  place.write(all);
  std::byte* contiguous = line.last(bytes);
  copy_range(contiguous, place.const_block(), offset, bytes, hint);
  ASSERT_EQ(Bytes(contiguous, contiguous + bytes), part)
      << offset << " + " << bytes << " of " << shape.describe();

  place.write(Bytes(shape.bytes(), kUntouched));
  copy_range(place.block(), offset, contiguous, bytes, hint);
  Bytes expected(shape.bytes(), kUntouched);
  std::copy(part.begin(), part.end(), expected.begin() + static_cast<std::ptrdiff_t>(offset));
  ASSERT_EQ(place.content(), expected) << offset << " + " << bytes << " of " << shape.describe();
  ASSERT_TRUE(place.gaps_untouched());
}

TEST(CopyRange, SmallShapesExhaustively) {
  for (const Shape& shape : {Shape{4, 3, 2}, Shape{3, 5, 0}, Shape{1, 9, 4}, Shape{9, 1, 1}}) {
    for (std::size_t offset = 0; offset <= shape.bytes(); ++offset) {
      for (std::size_t bytes = 0; offset + bytes <= shape.bytes(); ++bytes) {
        check_range_copy(shape, offset, bytes, CacheHint::kCached);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(CopyRange, RandomRanges) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 600; ++i) {
    const Shape shape{1 + random() % 20, 1 + random() % (i % 2 == 0 ? 60 : 3000), random() % 100};
    const std::size_t offset = random() % shape.bytes();
    const std::size_t bytes = random() % (shape.bytes() - offset + 1);
    check_range_copy(shape, offset, bytes, kHints[i % 4 / 2]);
    if (HasFatalFailure()) return;
  }
}

TEST(CopyRange, PiecesMakeTheWhole) {
  const Shape shape{37, 200, 56};
  const Bytes all = random_bytes(shape.bytes());
  Place source(shape, 0, true);
  Place target(shape, 0, true);
  source.write(all);
  Bytes slot(512);
  for (std::size_t at = 0; at < all.size(); at += slot.size()) {
    const std::size_t piece = std::min(slot.size(), all.size() - at);
    copy_range(slot.data(), source.const_block(), at, piece);
    copy_range(target.block(), at, slot.data(), piece);
  }
  EXPECT_EQ(target.content(), all);
}

TEST(Copy, LengthsThatDisagreeAreRefused) {
  std::byte memory[16];
  try {
    copy(contiguous_block(memory, 8), ConstBlock{memory + 8, 3, 1, 2});
    FAIL() << "nothing was thrown";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Kind::kInvalidArgument);
    EXPECT_STREQ(error.what(), "copy of a block of 3 bytes into one of 8");
  }
}

TEST(CopyRange, EndsBehindTheBlockAreRefused) {
  std::byte memory[16];
  const ConstBlock block{memory, 2, 4, 8};
  std::byte out[16];
  EXPECT_THROW(copy_range(out, block, 0, 9), Error);
  EXPECT_THROW(copy_range(out, block, 9, 0), Error);
  EXPECT_THROW(copy_range(out, block, 4, SIZE_MAX), Error);  // the sum would wrap
  EXPECT_THROW(copy_range(Block{memory, 2, 4, 8}, 5, out, 4), Error);
}

}  // namespace
}  // namespace fvd::shm
