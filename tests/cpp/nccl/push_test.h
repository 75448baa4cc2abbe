// What the tests of Communicator::push over the fakes have in common.
#pragma once

#include <algorithm>
#include <atomic>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/fake_kernels.h"
#include "cuda/kernels.h"
#include "nccl/fake_memory.h"
#include "nccl/nccl_test.h"

namespace fvd::test {

/// Memory of the fake device.
class DeviceInts {
 public:
  explicit DeviceInts(std::size_t count, int value = -1) : count_(count) {
    void* data = nullptr;
    fake_cuda().malloc(&data, count * sizeof(int));
    data_ = static_cast<int*>(data);
    std::fill_n(data_, count, value);
  }
  ~DeviceInts() { fake_cuda().free(data_); }
  DeviceInts(const DeviceInts&) = delete;
  DeviceInts& operator=(const DeviceInts&) = delete;

  int* data() { return data_; }
  Block block() { return contiguous_block(static_cast<void*>(data_), count_ * sizeof(int)); }
  std::vector<int> values() const { return {data_, data_ + count_}; }

 private:
  const std::size_t count_;
  int* data_ = nullptr;
};

class PushTest : public NcclCommunicatorTest {
 protected:
  static constexpr std::size_t kCount = 5;  // what a rank writes to each

  void SetUp() override {
    NcclCommunicatorTest::SetUp();
    cuda::use_kernels(&fake_kernel_table());
  }
  void TearDown() override {
    refuse_to_open_on(-1);
    EXPECT_EQ(open_memory(), 0);
    NcclCommunicatorTest::TearDown();
    cuda::use_no_kernels("the test is over");
  }

  /// As run(), of ranks that push, as far as `pushes` says.
  std::vector<Ending> run_pushing(NcclWorld& world, const Body& body,
                                  NcclCheck check = NcclCheck::kBeside,
                                  GroupOptions options = group()) {
    if (!world.pushes) world.pushes = [](int) { return true; };
    std::vector<Ending> endings(static_cast<std::size_t>(world.size()));
    const auto load = [&] {
      return nccl::Libraries{fake_nccl(world.folder()), fake_cuda(), cuda::block_kernels()};
    };
    run_threads(world.size(), [&](int rank) {
      endings[static_cast<std::size_t>(rank)] = ending_of([&] {
        const auto communicator = world.communicator(rank, options, check, load);
        const auto result = body(*communicator, rank);
        synchronize();
        return result;
      });
    });
    return endings;
  }
  std::vector<Ending> run_pushing(int size, const Body& body, NcclCheck check = NcclCheck::kBeside,
                                  GroupOptions options = group()) {
    NcclWorld world(size);
    return run_pushing(world, body, check, options);
  }

  /// Enqueues that each rank writes kCount of its number into the outputs of all, one after the
  /// other. `outputs` are as many as `given` says, kCount for each rank. Why not, if so.
  static std::string push(Communicator& group, std::vector<Block> outputs, const Call& call = {}) {
    // The source lives until the stream has read it.
    const auto source = std::make_shared<std::vector<int>>(kCount, group.rank());
    const auto why = group.push(
        outputs, DataType::kInt32,
        [&](const Reached& reached) {
          cuda::CopyPlan plan;
          const std::int64_t sizes[] = {kCount};
          const std::int64_t strides[] = {1};
          for (int rank = 0; rank < group.size(); ++rank) {
            for (std::size_t i = 0; i < reached.outputs; ++i) {
              auto* place = reached.place(static_cast<std::size_t>(rank), i);
              if (place == nullptr) continue;
              auto* to =
                  reinterpret_cast<int*>(place) + static_cast<std::size_t>(group.rank()) * kCount;
              plan.add({source->data(), to, sizes, strides, strides, sizeof(int)});
            }
          }
          cuda::enqueue(plan, call.stream, reached.given_up);
        },
        call);
    enqueue_on(static_cast<nccl::CudaStream>(call.stream.handle), [source] {});
    return why.value_or("");
  }

  static std::vector<int> everybody(int ranks) {
    std::vector<int> values;
    for (int rank = 0; rank < ranks; ++rank) values.insert(values.end(), kCount, rank);
    return values;
  }

  static std::size_t count_of(const Communicator& group) {
    return kCount * static_cast<std::size_t>(group.size());
  }
};

}  // namespace fvd::test
