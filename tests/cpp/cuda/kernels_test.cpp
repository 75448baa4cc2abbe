// The table of kernels this process has, on a fake one.
#include "cuda/kernels.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <thread>
#include <vector>

#include "comm/error.h"
#include "cuda/fake_kernels.h"
#include "nccl/nccl_world.h"

namespace fvd::cuda {
namespace {

struct Kernels : ::testing::Test {
  Kernels() { use_kernels(&test::fake_kernel_table()); }
  ~Kernels() override { use_no_kernels("the test is over"); }
};

Kind kind_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.kind();
  }
  return Kind::kAborted;  // none of those asked for here
}

TEST_F(Kernels, StridedBlocksArePackedAndUnpacked) {
  std::vector<std::byte> memory(1000), packed(200, std::byte{0}), back(1000, std::byte{0});
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::byte>(i % 251);
  const std::array from{nccl::PackedBlock{{memory.data() + 3, 5, 7, 100}, 10},
                        nccl::PackedBlock{{memory.data() + 16, 4, 32, 64}, 64}};
  std::array to = from;
  for (auto& one : to) one.block.data = back.data() + (one.block.data - memory.data());
  const auto before = test::launches();
  block_kernels().pack(from, packed.data(), nullptr);
  block_kernels().unpack(packed.data(), to, nullptr);
  test::synchronize();
  EXPECT_EQ(test::launches().count, before.count + 2);
  EXPECT_EQ(test::launches().bytes, before.bytes + 2 * 2 * (5 * 7 + 4 * 32));
  for (const auto& [block, offset] : from) {
    for (std::size_t run = 0; run < block.runs; ++run) {
      const std::byte* wanted = block.data + run * block.run_stride;
      EXPECT_TRUE(std::equal(wanted, wanted + block.run_bytes,
                             packed.data() + offset + run * block.run_bytes));
      EXPECT_TRUE(
          std::equal(wanted, wanted + block.run_bytes, back.data() + (wanted - memory.data())));
    }
  }
}

TEST_F(Kernels, WhyThereAreNone) {
  EXPECT_FALSE(why_no_kernels().has_value());
  use_no_kernels("of the weather");
  EXPECT_NE(why_no_kernels()->find("of the weather; build it with nvcc"), std::string::npos);
  EXPECT_EQ(block_kernels().pack, nullptr);
  char from = 'x', to = '.';
  const std::int64_t one = 1;
  CopyPlan plan;
  enqueue(plan, {});  // nothing to do
  plan.add({&from, &to, {&one, 1}, {&one, 1}, {&one, 1}, 1});
  EXPECT_EQ(kind_of([&] { enqueue(plan, {}); }), Kind::kUnsupported);
  load_kernels();
}

TEST_F(Kernels, ATableOfAnotherVersionIsRefused) {
  KernelTable table = test::fake_kernel_table();
  ++table.version;
  EXPECT_EQ(kind_of([&] { use_kernels(&table); }), Kind::kUnsupported);
  EXPECT_FALSE(why_no_kernels().has_value());  // the other one stays
}

TEST_F(Kernels, ALaunchThatFailsIsAnErrorOfTheLibrary) {
  char from = 'x', to = '.';
  const std::int64_t one = 1;
  CopyPlan plan;
  plan.add({&from, &to, {&one, 1}, {&one, 1}, {&one, 1}, 1});
  test::fail_next_launch();
  EXPECT_EQ(kind_of([&] { enqueue(plan, {}); }), Kind::kLibrary);
  enqueue(plan, {});
  test::synchronize();
  EXPECT_EQ(to, 'x');
}

}  // namespace
}  // namespace fvd::cuda
