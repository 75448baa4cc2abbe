// Two calls have one fingerprint exactly if they are the same call.
#include "shm/fingerprint.h"

#include <gtest/gtest.h>

#include <set>

namespace fvd::shm {
namespace {

Record example() {
  return {.op = Op::kAllReduce,
          .type = DataType::kFloat32,
          .reduce = ReduceKind::kSum,
          .has_type = true,
          .has_reduce = true,
          .count = 8};
}

TEST(Fingerprint, EveryPartOfTheCallCounts) {
  std::set<std::uint64_t> seen;
  int calls = 0;
  const auto add = [&](auto change, std::uint64_t epoch = 5, std::int64_t sequence = 7) {
    Record record = example();
    change(record);
    seen.insert(fingerprint(record, epoch, sequence));
    ++calls;
  };
  add([](Record&) {});
  add([](Record& r) { r.op = Op::kReduce; });
  add([](Record& r) { r.type = DataType::kInt32; });
  add([](Record& r) { r.reduce = ReduceKind::kMax; });
  add([](Record& r) { r.has_type = false; });
  add([](Record& r) { r.has_reduce = false; });
  add([](Record& r) { r.even = false; });
  add([](Record& r) { r.root = 0; });
  add([](Record& r) { r.root = 1; });
  add([](Record& r) { r.count = 9; });
  add([](Record& r) { r.count = std::uint64_t{8} << 32; });
  add([](Record& r) { r.factor = 0.5; });
  add([](Record&) {}, 6);
  add([](Record&) {}, 5, 8);
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(calls));
}

TEST(Fingerprint, EqualCallsAreEqual) {
  EXPECT_EQ(fingerprint(example(), 5, 7), fingerprint(example(), 5, 7));
}

TEST(Fingerprint, NeighbouringCountsAndSequencesDoNotCollide) {
  std::set<std::uint64_t> seen;
  Record record = example();
  for (std::uint64_t count = 0; count < 100; ++count) {
    record.count = count;
    for (std::int64_t sequence = 1; sequence <= 100; ++sequence) {
      seen.insert(fingerprint(record, 1, sequence));
    }
  }
  EXPECT_EQ(seen.size(), 10000U);
}

}  // namespace
}  // namespace fvd::shm
