// Which allocations are open, and when one is closed.
#include "nccl/shared_memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <vector>

#include "nccl/fake_cuda.h"
#include "nccl/fake_memory.h"

namespace fvd::nccl {
namespace {

/// A handle is its number; opened it is at 4096 times that.
Shared piece_of(std::uint64_t number, std::uint64_t base, std::uint64_t size = 100) {
  Shared piece;
  std::memcpy(piece.handle.bytes, &number, sizeof(number));
  piece.base = base;
  piece.size = size;
  piece.offset = 16;
  return piece;
}

int opens = 0;
std::set<std::uint64_t> failing;
CudaResult failure;

CudaResult open(void** data, IpcHandle handle, unsigned) {
  std::uint64_t number = 0;
  std::memcpy(&number, handle.bytes, sizeof(number));
  ++opens;
  if (failing.contains(number)) return failure;
  *data = reinterpret_cast<void*>(4096 * number);
  return CudaResult::kSuccess;
}

std::vector<std::uint64_t> closed;

CudaResult close(void* data) {
  closed.push_back(reinterpret_cast<std::uintptr_t>(data) / 4096);
  return CudaResult::kSuccess;
}

std::uint64_t number_at(const void* data) { return reinterpret_cast<std::uintptr_t>(data) / 4096; }

class MappingsTest : public ::testing::Test {
 protected:
  MappingsTest() : mappings(context) {
    opens = 0;
    failing.clear();
    closed.clear();
    failure = static_cast<CudaResult>(217);
    context.cuda = test::fake_cuda();
    context.cuda.ipc_open_handle = open;
    context.cuda.ipc_close_handle = close;
    context.rank = 1;
    context.size = 3;
    mappings.begin_call();
  }
  std::vector<std::uint64_t> given_up() {
    std::vector<std::uint64_t> numbers;
    for (const void* data : mappings.take_given_up()) numbers.push_back(number_at(data));
    return numbers;
  }
  std::byte* find(int rank, const Shared& piece) { return mappings.find(rank, piece, why); }

  Context context;
  Mappings mappings;
  std::string why;
};

using Numbers = std::vector<std::uint64_t>;

TEST_F(MappingsTest, AnAllocationIsOpenedOnce) {
  const Shared piece = piece_of(5, 1000);
  EXPECT_FALSE(mappings.knows(0, piece));
  EXPECT_EQ(mappings.open(0, piece).why, "");
  Shared other = piece;
  other.offset = 48;
  EXPECT_EQ(mappings.open(0, other).why, "");
  EXPECT_EQ(opens, 1);
  EXPECT_TRUE(mappings.knows(0, other));
  EXPECT_FALSE(mappings.knows(2, other));
  EXPECT_EQ(find(0, other) - find(0, piece), 32);
  EXPECT_EQ(number_at(find(0, piece)), 5u);
}

TEST_F(MappingsTest, TheOwnOneIsNotOpened) {
  EXPECT_EQ(mappings.open(1, piece_of(5, 1000)).why, "");
  EXPECT_EQ(opens, 0);
  EXPECT_EQ(find(1, piece_of(5, 1000)), reinterpret_cast<std::byte*>(1016));
  mappings.give_up_all();
  EXPECT_EQ(given_up(), Numbers{});
}

TEST_F(MappingsTest, WhatAnotherAllocationReplacesIsClosed) {
  mappings.open(0, piece_of(1, 1000));
  mappings.open(0, piece_of(2, 1100));
  mappings.open(2, piece_of(3, 1000));
  EXPECT_EQ(given_up(), Numbers{});
  mappings.open(0, piece_of(4, 1050, 10));
  EXPECT_EQ(closed, Numbers{1});
  EXPECT_EQ(given_up(), Numbers{});
  EXPECT_TRUE(mappings.knows(0, piece_of(2, 1100)));
  EXPECT_TRUE(mappings.knows(2, piece_of(3, 1000)));
  mappings.open(0, piece_of(6, 900, 1000));
  EXPECT_EQ(closed, (Numbers{1, 2, 4}));
  mappings.give_up_all();
  EXPECT_EQ(given_up(), (Numbers{6, 3}));
}

TEST_F(MappingsTest, NoMoreStayOpenThanMay) {
  for (std::uint64_t i = 0; i < Mappings::kMost; ++i) {
    mappings.begin_call();
    mappings.open(0, piece_of(10 + i, 1000 * (i + 1)));
  }
  mappings.begin_call();
  mappings.touch(0, piece_of(10, 1000));
  mappings.open(0, piece_of(500, 1));
  EXPECT_EQ(given_up(), Numbers{11});
  EXPECT_TRUE(mappings.knows(0, piece_of(10, 1000)));
}

TEST_F(MappingsTest, WhatIsRefusedIsNotTriedAgain) {
  failing = {7};
  EXPECT_EQ(mappings.open(0, piece_of(5, 1000)).why, "");
  mappings.begin_call();
  EXPECT_EQ(
      mappings.open(0, piece_of(7, 2000)).why,
      "the memory of rank 0 cannot be opened on GPU 0: an error of the fake (CUDA error 217)");
  EXPECT_EQ(mappings.open(2, piece_of(8, 1000)).why, "");
  mappings.refuse_new({"rank 1: of the weather"});
  EXPECT_EQ(closed, Numbers{8});
  mappings.begin_call();
  EXPECT_EQ(mappings.open(0, piece_of(7, 2000)).why, "");
  EXPECT_EQ(opens, 3);
  EXPECT_EQ(find(0, piece_of(7, 2000)), nullptr);
  EXPECT_EQ(why, "rank 1: of the weather");
  EXPECT_EQ(find(2, piece_of(8, 1000)), nullptr);
  EXPECT_EQ(number_at(find(0, piece_of(5, 1000))), 5u);
}

TEST_F(MappingsTest, WhatFailsInPassingIsTriedAgain) {
  for (const int code : {2, 208}) {  // no memory; another allocation is still open there
    mappings.begin_call();
    failing = {7};
    failure = static_cast<CudaResult>(code);
    const auto refusal = mappings.open(0, piece_of(7, 2000));
    EXPECT_TRUE(refusal.passing);
    mappings.refuse_new(refusal);
    EXPECT_FALSE(mappings.knows(0, piece_of(7, 2000)));
    failing.clear();
    mappings.begin_call();
    EXPECT_EQ(mappings.open(0, piece_of(7, 2000)).why, "");
    mappings.refuse_new({"once more", true});
  }
}

TEST_F(MappingsTest, WhatNoCallUsesIsGivenUp) {
  mappings.open(0, piece_of(5, 1000));
  mappings.open(2, piece_of(6, 1000));
  for (std::uint64_t call = 0; call <= Mappings::kIdleCalls; ++call) {
    EXPECT_EQ(given_up(), Numbers{});
    mappings.begin_call();
    mappings.touch(2, piece_of(6, 1000));
    mappings.drop_idle();
  }
  EXPECT_EQ(given_up(), Numbers{5});
  EXPECT_FALSE(mappings.knows(0, piece_of(5, 1000)));
  EXPECT_TRUE(mappings.knows(2, piece_of(6, 1000)));
}

TEST(ExporterTest, FindsTheAllocationAndKnowsANewOneAtItsAddress) {
  CudaApi cuda = test::fake_cuda();
  Exporter exporter(cuda);
  void* memory = nullptr;
  cuda.malloc(&memory, 1000);
  const Shared piece = exporter.of(static_cast<std::byte*>(memory) + 40);
  EXPECT_EQ(piece.base, reinterpret_cast<std::uintptr_t>(memory));
  EXPECT_EQ(piece.size, 1000u);
  EXPECT_EQ(piece.offset, 40u);
  EXPECT_EQ(exporter.of(memory).handle, piece.handle);
  cuda.free(memory);
  for (int i = 0; i < 8; ++i) {  // mostly at once at the same address
    cuda.malloc(&memory, 1000);
    EXPECT_NE(exporter.of(memory).handle, piece.handle);
    cuda.free(memory);
  }
}

template <typename Body>
std::string refusal(Body&& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Kind::kUnsupported);
    return error.what();
  }
  return "nothing was thrown";
}

TEST(ExporterTest, SaysWhyMemoryCannotBeShared) {
  CudaApi cuda = test::fake_cuda();
  int nowhere = 0;
  Exporter exporter(cuda);
  EXPECT_NE(refusal([&] { exporter.of(&nowhere); }).find("expandable_segments"), std::string::npos);
  cuda.driver_entry = [](const char*, void**, unsigned, unsigned long long, int*) {
    return static_cast<CudaResult>(35);
  };
  Exporter without_driver(cuda);
  EXPECT_NE(refusal([&] { without_driver.of(&nowhere); }).find("the CUDA driver does not tell"),
            std::string::npos);
}

}  // namespace
}  // namespace fvd::nccl
