#include "cuda/fake_kernels.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "nccl/fake_cuda.h"

namespace fvd::test {
namespace {

using namespace fvd::cuda;

std::atomic<long> launch_count{0};
std::atomic<long> launch_bytes{0};
std::atomic<bool> next_fails{false};

int copy_parts(const CopyPart* parts, std::uint32_t count, std::uint32_t tiles, void* stream) {
  if (next_fails.exchange(false)) return 719;
  ++launch_count;
  for (std::uint32_t i = 0; i < count; ++i)
    launch_bytes += static_cast<long>(2 * (units_of(parts[i]) << parts[i].unit_log2));
  enqueue_on(static_cast<nccl::CudaStream>(stream),
             [list = std::vector(parts, parts + count), tiles] {
               copy_parts_on_host(list.data(), static_cast<std::uint32_t>(list.size()), tiles);
             });
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

const KernelTable& fake_kernel_table() {
  static const KernelTable table{kKernelTableVersion, [] { return 0; }, copy_parts, error_text};
  return table;
}

Launches launches() { return {launch_count, launch_bytes}; }
void fail_next_launch() { next_fails = true; }

}  // namespace fvd::test
