#include "cuda/fake_kernels.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "nccl/fake_cuda.h"

namespace fvd::test {
namespace {

using namespace fvd::cuda;

std::atomic<long> launch_count{0};
std::atomic<long> launch_bytes{0};
std::atomic<long> wait_count{0};
std::atomic<bool> next_fails{false};

bool is_set(const std::uint32_t* word) {
  return word != nullptr && __atomic_load_n(word, __ATOMIC_ACQUIRE) != 0;
}

int copy_parts(const CopyPart* parts, std::uint32_t count, std::uint32_t tiles,
               const std::uint32_t* given_up, void* stream) {
  if (next_fails.exchange(false)) return 719;
  ++launch_count;
  for (std::uint32_t i = 0; i < count; ++i)
    launch_bytes += static_cast<long>(2 * (units_of(parts[i]) << parts[i].unit_log2));
  enqueue_on(static_cast<nccl::CudaStream>(stream),
             [list = std::vector(parts, parts + count), tiles, given_up] {
               if (is_set(given_up)) return;
               copy_parts_on_host(list.data(), static_cast<std::uint32_t>(list.size()), tiles);
             });
  return 0;
}

int wait_for_ranks(const Barrier* barrier, void* stream) {
  if (next_fails.exchange(false)) return 719;
  ++wait_count;
  enqueue_on(static_cast<nccl::CudaStream>(stream),
             [barrier = *barrier] { wait_for_ranks_on_host(barrier); });
  return 0;
}

const char* error_text(int) { return "an error of the fake"; }

}  // namespace

void copy_parts_on_host(const CopyPart* parts, std::uint32_t count, std::uint32_t tiles) {
  for (std::uint32_t block = 0; block < tiles; ++block) {
    const CopyPart& part = parts[part_of_tile(parts, count, block)];
    const std::uint64_t first = static_cast<std::uint64_t>(block - part.first_tile) * kTileUnits;
    const std::uint64_t left = units_of(part) - first;
    const TileBegin begin = TileBegin::of(part, first);
    for (std::uint32_t ahead = 0; ahead < kTileUnits && ahead < left; ++ahead) {
      const UnitOffsets offsets = unit_offsets(part, begin, ahead);
      std::memcpy(part.to + offsets.to, part.from + offsets.from, std::size_t{1} << part.unit_log2);
    }
  }
}

// The ranks one after the other, where the kernel has a thread for each.
void wait_for_ranks_on_host(const Barrier& barrier) {
  if (is_set(barrier.given_up)) return;
  const bool aborted = is_set(barrier.abort);
  std::uint64_t missing = aborted ? bit_of(barrier.rank) : 0;
  for (std::uint32_t peer = 0; peer < barrier.ranks; ++peer)
    if (peer != barrier.rank && !aborted)
      __atomic_store_n(barrier.tell[peer], barrier.number, __ATOMIC_RELEASE);
  const auto now = [] {
    return static_cast<std::uint64_t>(
        std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count());
  };
  const Patience patience{now(), barrier.limit};
  for (std::uint32_t peer = 0; peer < barrier.ranks; ++peer) {
    if (peer == barrier.rank || aborted) continue;
    const auto* word = reinterpret_cast<const std::uint64_t*>(barrier.heard + peer * barrier.step);
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) < barrier.number) {
      if (!patience.lasts(now(), is_set(barrier.abort))) {
        missing |= bit_of(peer);
        break;
      }
      std::this_thread::sleep_for(std::chrono::microseconds{20});
    }
  }
  if (barrier.begins != 0 && is_set(barrier.abort)) missing |= bit_of(barrier.rank);
  if (missing == 0) return;
  __atomic_store_n(barrier.given_up, 1, __ATOMIC_RELEASE);
  __atomic_store_n(&barrier.report[1], missing, __ATOMIC_RELAXED);
  __atomic_store_n(&barrier.report[0], barrier.number, __ATOMIC_RELEASE);
  std::this_thread::sleep_for(std::chrono::nanoseconds{barrier.linger});
}

const KernelTable& fake_kernel_table() {
  static const KernelTable table{kKernelTableVersion, [] { return 0; }, copy_parts, wait_for_ranks,
                                 error_text};
  return table;
}

Launches launches() { return {launch_count, launch_bytes}; }
long rank_waits() { return wait_count; }
void fail_next_launch() { next_fails = true; }

}  // namespace fvd::test
