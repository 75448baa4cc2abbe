// An address comes out of a handle that anybody may have made: parsed whole or refused.
#include <gtest/gtest.h>

#include "shm/ring_memory.h"
#include "support/ending.h"

namespace fvd::shm {
namespace {

RingAddress example() {
  RingAddress address;
  address.boot_id = "7a2c8e5e-0000-4000-8000-000000000001";
  address.pid_namespace = 4026531836;
  address.uid = 1000;
  address.pid = 4711;
  address.start_time = 123456;
  address.id = {11, 22};
  address.readers = 3;
  address.slots = 10;
  address.slot_bytes = 24 << 20;
  address.data_fd = 17;
  address.control_fd = 18;
  address.name = "tp";
  return address;
}

void expect_refused(const std::string& bytes) {
  const auto ending = test::ending_of([&] {
    RingAddress::parse(bytes);
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kInvalidArgument)) << bytes.size() << " bytes: " << ending;
}

TEST(RingAddress, RoundTrip) {
  const RingAddress parsed = RingAddress::parse(example().serialize());
  EXPECT_EQ(parsed.serialize(), example().serialize());
  EXPECT_EQ(parsed.name, "tp");
  EXPECT_EQ(parsed.control_fd, 18U);
  EXPECT_EQ(parsed.slot_bytes, 24U << 20);
}

TEST(RingAddress, ALongNameIsCutNotRefused) {
  RingAddress address = example();
  address.name = std::string(1000, 'n');
  EXPECT_EQ(RingAddress::parse(address.serialize()).name, std::string(256, 'n'));
}

TEST(RingAddress, NothingButTheWholeIsTaken) {
  const std::string whole = example().serialize();
  for (std::size_t length = 0; length < whole.size(); ++length) {
    expect_refused(whole.substr(0, length));
  }
  expect_refused(whole + '\0');
  std::string other = whole;
  other[17] = '2';  // of another version
  expect_refused(other);
}

TEST(RingAddress, SizesOfNoRingAreRefused) {
  for (const auto spoil : std::initializer_list<void (*)(RingAddress&)>{
           [](RingAddress& a) { a.readers = 0; },
           [](RingAddress& a) { a.readers = 257; },
           [](RingAddress& a) { a.slots = 0; },
           [](RingAddress& a) { a.slots = ~std::uint64_t{0}; },
           [](RingAddress& a) { a.slot_bytes = ~std::uint64_t{0}; },
           [](RingAddress& a) { a.data_fd = ~std::uint64_t{0}; },
       }) {
    RingAddress address = example();
    spoil(address);
    expect_refused(address.serialize());
  }
}

}  // namespace
}  // namespace fvd::shm
