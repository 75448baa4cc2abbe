// What comes out of the store is anybody's bytes: parsed whole or refused, never more.
#include "shm/peer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "support/ending.h"

namespace fvd::shm {
namespace {

PeerInfo example() {
  PeerInfo info;
  info.boot_id = "7a2c8e5e-0000-4000-8000-000000000001";
  info.pid_namespace = 4026531836;
  info.uid = 1000;
  info.pid = 4711;
  info.start_time = 123456;
  info.domain = {11, 22};
  info.nonce = 33;
  info.rank = 1;
  info.size = 4;
  info.slot = 5;
  info.slots = 64;
  info.pipeline_bytes = 128 << 10;
  info.one_shot_bytes = 32 << 10;
  info.connected = {{1, 2}, {3, 4}, {5, 6}};
  return info;
}

/// Nothing if `bytes` are taken, else the message of the kMismatch they are refused with.
std::string refusal(const std::string& bytes) {
  const auto ending = test::ending_of([&] {
    PeerInfo::parse(bytes, 3);
    return "";
  });
  EXPECT_TRUE(ending.returned || ending.threw(Kind::kMismatch)) << ending;
  return ending.words;
}

TEST(PeerInfo, RoundTrip) {
  const PeerInfo info = example();
  const PeerInfo parsed = PeerInfo::parse(info.serialize(), 0);
  EXPECT_EQ(parsed.serialize(), info.serialize());
  EXPECT_EQ(parsed.boot_id, info.boot_id);
  EXPECT_EQ(parsed.pid_namespace, info.pid_namespace);
  EXPECT_EQ(parsed.uid, info.uid);
  EXPECT_EQ(parsed.pid, info.pid);
  EXPECT_EQ(parsed.start_time, info.start_time);
  EXPECT_EQ(parsed.domain, info.domain);
  EXPECT_EQ(parsed.nonce, info.nonce);
  EXPECT_EQ(parsed.rank, info.rank);
  EXPECT_EQ(parsed.size, info.size);
  EXPECT_EQ(parsed.slot, info.slot);
  EXPECT_EQ(parsed.slots, info.slots);
  EXPECT_EQ(parsed.pipeline_bytes, info.pipeline_bytes);
  EXPECT_EQ(parsed.one_shot_bytes, info.one_shot_bytes);
  EXPECT_EQ(parsed.connected, info.connected);
}

TEST(PeerInfo, TruncatedAtEveryLength) {
  const std::string whole = example().serialize();
  for (std::size_t length = 0; length < whole.size(); ++length) {
    EXPECT_NE(refusal(whole.substr(0, length)), "") << length;
  }
}

TEST(PeerInfo, BytesBehindTheEnd) { EXPECT_NE(refusal(example().serialize() + "x"), ""); }

TEST(PeerInfo, AnotherVersionIsNamedAsSuch) {
  std::string bytes = example().serialize();
  bytes[0] ^= 1;
  EXPECT_NE(refusal(bytes).find("rank 3 runs another version"), std::string::npos);
}

TEST(PeerInfo, SizesNoDomainCanHave) {
  const auto with = [](auto change) {
    PeerInfo info = example();
    change(info);
    return info.serialize();
  };
  ASSERT_EQ(refusal(with([](PeerInfo&) {})), "");
  EXPECT_NE(refusal(with([](PeerInfo& i) { i.slots = 0; })), "");
  EXPECT_NE(refusal(with([](PeerInfo& i) { i.slots = std::uint64_t{1} << 60; })), "");
  EXPECT_NE(refusal(with([](PeerInfo& i) { i.slot = i.slots; })), "");
  EXPECT_NE(refusal(with([](PeerInfo& i) { i.pipeline_bytes = 0; })), "");
  EXPECT_NE(refusal(with([](PeerInfo& i) { i.pipeline_bytes = ~std::uint64_t{0} - 4095; })), "");
  EXPECT_NE(refusal(with([](PeerInfo& i) { i.pipeline_bytes = 65537; })), "");
  EXPECT_NE(refusal(with([](PeerInfo& i) { i.one_shot_bytes = Layout::kOneShotBytes + 1; })), "")
      << "a one-shot message of the agreed size would not fit its area";
  EXPECT_NE(refusal(with([](PeerInfo& i) { i.boot_id = std::string(65, 'x'); })), "");
}

TEST(PeerInfo, CountsThatPromiseMoreThanIsThere) {
  const PeerInfo info = example();
  const std::string whole = info.serialize();
  const std::size_t magic = whole.find(info.boot_id) - sizeof(std::uint64_t);
  const std::size_t list = whole.size() - info.connected.size() * sizeof(DomainId) - 8;
  for (const std::uint64_t count : {~std::uint64_t{0}, std::uint64_t{1} << 60, std::uint64_t{65},
                                    std::uint64_t{4096}, std::uint64_t{4}}) {
    for (const std::size_t at : {magic, list}) {
      std::string bytes = whole;
      std::memcpy(bytes.data() + at, &count, sizeof(count));
      EXPECT_NE(refusal(bytes), "") << count << " at " << at;
    }
  }
}

/// Whatever is taken must be safe to compute with.
void expect_sane(const std::string& bytes) {
  try {
    const PeerInfo info = PeerInfo::parse(bytes, 0);
    EXPECT_LT(info.slot, info.slots);
    EXPECT_LE(info.layout().outbox_offset(info.slot), info.layout().data_bytes());
    EXPECT_LE(info.connected.size(), bytes.size() / sizeof(DomainId));
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Kind::kMismatch);
  }
}

TEST(PeerInfo, TenThousandRandomStrings) {
  std::mt19937_64 random(20240229);
  for (int i = 0; i < 10000; ++i) {
    std::string bytes(random() % 400, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    expect_sane(bytes);
  }
}

TEST(PeerInfo, TenThousandDamagedOnes) {
  std::mt19937_64 random(1);
  const std::string whole = example().serialize();
  for (int i = 0; i < 10000; ++i) {
    std::string bytes = whole;
    for (std::uint64_t n = random() % 8 + 1; n > 0; --n) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    if (random() % 4 == 0) bytes.resize(random() % (bytes.size() + 50));
    expect_sane(bytes);
  }
}

}  // namespace
}  // namespace fvd::shm
