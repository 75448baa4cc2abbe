#include "contract/communicator_contract.h"

#include <algorithm>

namespace fvd::test {

std::byte pattern(std::uint64_t seed, std::size_t index) {
  const std::uint64_t mixed = (seed + 1) * 0x9E3779B97F4A7C15ULL + index * 0xBF58476D1CE4E5B9ULL;
  return static_cast<std::byte>(mixed >> 56);
}

void StridedMemory::fill(std::uint64_t seed) {
  for (std::size_t i = 0; i < size(); ++i) at(i) = pattern(seed, i);
}

void StridedMemory::check(std::uint64_t seed, const std::string& what) {
  for (std::size_t i = 0; i < size(); ++i) {
    require(at(i) == pattern(seed, i), what, ": byte ", i, " of ", size(), " is ",
            std::to_integer<int>(at(i)), " instead of ", std::to_integer<int>(pattern(seed, i)));
    at(i) = kMark;
  }
  check_untouched(what + ", beside the block");
}

void StridedMemory::check_untouched(const std::string& what) const {
  const auto written =
      std::find_if(bytes_.begin(), bytes_.end(), [](std::byte byte) { return byte != kMark; });
  require(written == bytes_.end(), what, ": byte ", written - bytes_.begin(), " of ", bytes_.size(),
          " was written");
}

void CommunicatorContract::run(const Body& body, const GroupOptions& options) {
  const auto outcomes = GetParam().run(size(), options, body);
  EXPECT_EQ(errors_of(outcomes), "");
}

std::vector<std::size_t> CommunicatorContract::byte_counts() const {
  const std::size_t one_shot = GetParam().one_shot_bytes, staging = GetParam().staging_bytes;
  return {0,
          1,
          2,
          47,
          48,
          49,
          one_shot - 1,
          one_shot,
          one_shot + 1,
          staging - 1,
          staging + 1,
          3 * staging + 17};
}

std::vector<std::size_t> CommunicatorContract::counts(std::size_t element_bytes) const {
  std::vector<std::size_t> elements;
  for (std::size_t bytes : byte_counts()) {
    const std::size_t count = bytes / element_bytes;
    for (std::size_t each : {count, count + 1}) {
      if (elements.empty() || each > elements.back()) elements.push_back(each);
    }
  }
  return elements;
}

std::vector<StridedMemory> shapes_of(std::size_t bytes) {
  std::vector<StridedMemory> shapes;
  shapes.emplace_back(1, bytes, 0);
  if (bytes >= 12) {
    shapes.emplace_back(bytes / 3, 3, 5);
    shapes.emplace_back(3, bytes / 3, 64);
  }
  return shapes;
}

}  // namespace fvd::test
