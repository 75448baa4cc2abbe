#include "cuda/kernels.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>

#include "comm/error.h"

namespace fvd::cuda {
namespace {

std::atomic<const KernelTable*> current{nullptr};

struct Reason {
  std::mutex mutex;
  std::string words = "none were loaded";
};
Reason& reason() {
  static auto* const reason = new Reason;  // may be asked for while the process ends
  return *reason;
}

void add(CopyPlan& plan, const nccl::PackedBlock& one, std::byte* packed, bool packs) {
  const Block& block = one.block;
  const std::array sizes{static_cast<std::int64_t>(block.runs),
                         static_cast<std::int64_t>(block.run_bytes)};
  const std::array strided{static_cast<std::int64_t>(block.run_stride), std::int64_t{1}};
  const std::array dense{static_cast<std::int64_t>(block.run_bytes), std::int64_t{1}};
  std::byte* at = packed + one.offset;
  if (packs) {
    plan.add({block.data, at, sizes, strided, dense, 1});
  } else {
    plan.add({at, block.data, sizes, dense, strided, 1});
  }
}

void pack(std::span<const nccl::PackedBlock> from, std::byte* to, nccl::CudaStream stream) {
  CopyPlan plan;
  for (const auto& one : from) add(plan, one, to, true);
  enqueue(plan, {stream});
}

void unpack(const std::byte* from, std::span<const nccl::PackedBlock> to, nccl::CudaStream stream) {
  CopyPlan plan;
  for (const auto& one : to) add(plan, one, const_cast<std::byte*>(from), false);
  enqueue(plan, {stream});
}

static_assert(kMostBarrierRanks == nccl::RankBarrier::kMostRanks);

void wait_for_ranks(const nccl::RankBarrier& wanted, nccl::CudaStream stream) {
  Barrier barrier{};
  std::copy(wanted.tell.begin(), wanted.tell.end(), barrier.tell);
  barrier.heard = wanted.heard;
  barrier.step = wanted.step;
  barrier.number = wanted.number;
  barrier.limit = static_cast<std::uint64_t>(wanted.limit.count());
  barrier.linger = static_cast<std::uint64_t>(wanted.linger.count());
  barrier.given_up = wanted.given_up;
  barrier.abort = wanted.abort;
  barrier.report = wanted.report;
  barrier.rank = static_cast<std::uint32_t>(wanted.rank);
  barrier.begins = wanted.begins ? 1 : 0;
  barrier.ranks = static_cast<std::uint32_t>(wanted.tell.size());
  const KernelTable* const table = current.load(std::memory_order_acquire);
  FVD_CHECK(table != nullptr, kUnsupported, *why_no_kernels());
  const int error = table->wait_for_ranks(&barrier, stream);
  FVD_CHECK(error == 0, kLibrary,
            "a kernel that waits for the other ranks was not launched: ", table->error_text(error),
            " (CUDA error ", error, ")");
}

}  // namespace

void use_kernels(const KernelTable* table) {
  FVD_CHECK(table->version == kKernelTableVersion, kUnsupported,
            "fastvideo_dist._C_cuda has kernels of version ", table->version, ", needed is ",
            kKernelTableVersion, "; build both extensions of the package together");
  current.store(table, std::memory_order_release);
}

void use_no_kernels(const std::string& words) {
  const std::lock_guard lock(reason().mutex);
  reason().words = words;
  current.store(nullptr, std::memory_order_release);
}

std::optional<std::string> why_no_kernels() {
  if (current.load(std::memory_order_acquire) != nullptr) return std::nullopt;
  const std::lock_guard lock(reason().mutex);
  return text("this package has no kernels for GPUs: ", reason().words,
              "; build it with nvcc at hand and FASTVIDEO_DIST_CUDA=1");
}

void load_kernels() noexcept {
  if (const KernelTable* table = current.load(std::memory_order_acquire)) table->load_kernels();
}

void enqueue(const CopyPlan& plan, Stream stream, const std::uint32_t* given_up) {
  if (plan.empty()) return;
  const KernelTable* const table = current.load(std::memory_order_acquire);
  FVD_CHECK(table != nullptr, kUnsupported, *why_no_kernels());
  for (const auto& launch : plan.launches()) {
    const int error = table->copy_parts(plan.parts(launch).data(), launch.count, launch.tiles,
                                        given_up, stream.handle);
    FVD_CHECK(error == 0, kLibrary, "a kernel that copies ", plan.bytes(),
              " bytes was not launched: ", table->error_text(error), " (CUDA error ", error, ")");
  }
}

nccl::BlockKernels block_kernels() {
  if (current.load(std::memory_order_acquire) == nullptr) return {};
  return {pack, unpack, wait_for_ranks};
}

}  // namespace fvd::cuda
