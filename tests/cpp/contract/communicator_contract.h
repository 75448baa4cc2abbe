// What every Communicator promises, promise by promise of comm/communicator.h.
//
// A communicator enters with one INSTANTIATE_TEST_SUITE_P over ContractWorld (see
// shm/shm_communicator_contract_test.cpp). Ranks may be threads or processes, so a body tells what
// it finds by throwing (`require`), never by EXPECT_*, and shares nothing with other ranks but what
// it exchanges.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/error.h"
#include "comm/options.h"
#include "support/ranks.h"

namespace fvd::test {

/// One kind of ranks in one number.
struct ContractWorld {
  std::string name;
  int size = 1;
  std::size_t one_shot_bytes = 0;  // the sizes around which a transport changes its way
  std::size_t staging_bytes = 0;

  bool matches_tags = true;    // else messages match in order, and no source may be left open
  bool reduces_bits = true;    // BAND, BOR, BXOR
  bool compares_first = true;  // else disagreements are found while a call runs

  /// Runs `body` once per rank on the communicator of a fresh group.
  using Body = std::function<void(Communicator& group)>;
  std::function<std::vector<Outcome>(int size, const GroupOptions& options, const Body& body)> run;
};
inline void PrintTo(const ContractWorld& world, std::ostream* out) {
  *out << world.name << " of " << world.size;
}

/// Throws with the text of `parts` unless the condition holds.
template <typename... Parts>
void require(bool condition, Parts&&... parts) {
  if (!condition) throw std::runtime_error(text(std::forward<Parts>(parts)...));
}

/// Calls `body`, which must throw Error of kind `kind`; returns its message.
template <typename Body>
std::string message_of(Kind kind, Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    require(error.kind() == kind, "expected ", name(kind), " but it was ", name(error.kind()), ": ",
            error.what());
    return error.what();
  }
  throw std::runtime_error(text("expected ", name(kind), " but nothing was thrown"));
}

/// The kind of whatever Error `body` throws; it must throw one that breaks the group.
template <typename Body>
Kind breaking_kind_of(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    require(error.kind() != Kind::kInvalidArgument && error.kind() != Kind::kUnsupported,
            "a broken group threw ", name(error.kind()), ": ", error.what());
    return error.kind();
  }
  throw std::runtime_error("expected an error of a broken group but nothing was thrown");
}

/// Memory of one block, its runs apart from each other, with marked bytes in the gaps and around.
class StridedMemory {
 public:
  StridedMemory(std::size_t runs, std::size_t run_bytes, std::size_t gap)
      : runs_(runs),
        run_bytes_(run_bytes),
        stride_(run_bytes + gap),
        bytes_(runs * (run_bytes + gap) + 2 * kMargin, kMark) {}

  Block block() { return {bytes_.data() + kMargin, runs_, run_bytes_, stride_}; }
  ConstBlock const_block() const { return {bytes_.data() + kMargin, runs_, run_bytes_, stride_}; }
  std::size_t size() const { return runs_ * run_bytes_; }

  /// Byte `index` of the block's content.
  std::byte& at(std::size_t index) {
    return bytes_[kMargin + index / run_bytes_ * stride_ + index % run_bytes_];
  }

  /// Fills the content with the pattern of `seed`.
  void fill(std::uint64_t seed);
  /// Throws, naming `what`, if the content is not the pattern of `seed` or a marked byte has
  /// changed.
  void check(std::uint64_t seed, const std::string& what);
  /// Throws if any byte, content included, has been written.
  void check_untouched(const std::string& what) const;

 private:
  static constexpr std::size_t kMargin = 64;
  static constexpr std::byte kMark{0xEE};
  std::size_t runs_, run_bytes_, stride_;
  std::vector<std::byte> bytes_;
};

/// Byte `index` of the pattern of `seed`; neighbouring seeds and indices differ.
std::byte pattern(std::uint64_t seed, std::size_t index);

class CommunicatorContract : public ::testing::TestWithParam<ContractWorld> {
 protected:
  using Body = ContractWorld::Body;

  int size() const { return GetParam().size; }
  /// A group whose waits end by themselves only when a test hangs.
  static GroupOptions patient() { return {"contract", std::chrono::seconds(60), {}}; }

  /// Every rank must end well.
  void run(const Body& body, const GroupOptions& options = patient());

  /// Byte counts: 0, 1, both sides of each of the transport's limits, several rounds of its
  /// pipeline.
  std::vector<std::size_t> byte_counts() const;
  /// The same in elements.
  std::vector<std::size_t> counts(std::size_t element_bytes) const;
};

/// The shapes a block may have: in one piece and in runs; each about `bytes` long.
std::vector<StridedMemory> shapes_of(std::size_t bytes);

}  // namespace fvd::test
