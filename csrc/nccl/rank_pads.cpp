#include "nccl/rank_pads.h"

#include <map>
#include <mutex>
#include <vector>

namespace fvd::nccl {
namespace {

// CUDA cuts small allocations out of larger ones and shares those as a whole: this is a whole one.
constexpr std::size_t kArenaBytes = std::size_t{2} << 20;
constexpr std::size_t kPadBytes = 4096;
constexpr std::size_t kPlaces = kArenaBytes / kPadBytes;
static_assert(sizeof(RankPad) <= kPadBytes);

struct Places {
  std::mutex mutex;
  std::map<int, std::vector<RankPlace>> free;  // by device
};

// Never destroyed: groups may be left while the process ends.
Places& places() {
  static auto* const places = new Places;
  return *places;
}

std::vector<RankPlace> make_places(const CudaApi& cuda) {
  const RelaxedScope relaxed(cuda);
  void* words = nullptr;
  check(cuda, cuda.host_alloc(&words, kPlaces * sizeof(HostWords), kHostPortable | kHostMapped),
        "cudaHostAlloc");
  // If this fails the words are lost: a page or two, once.
  void* pads = nullptr;
  check(cuda, cuda.malloc(&pads, kArenaBytes), "cudaMalloc");
  std::vector<RankPlace> result;
  for (std::size_t i = kPlaces; i-- > 0;) {
    result.push_back({reinterpret_cast<RankPad*>(static_cast<std::byte*>(pads) + i * kPadBytes),
                      static_cast<HostWords*>(words) + i});
  }
  return result;
}

}  // namespace

RankPlace take_place(const CudaApi& cuda, int device) {
  Places& all = places();
  const std::lock_guard lock(all.mutex);
  auto& free = all.free[device];
  if (free.empty()) free = make_places(cuda);
  const RankPlace place = free.back();
  free.pop_back();
  *place.words = {};
  return place;
}

void give_place(int device, RankPlace place) noexcept {
  Places& all = places();
  const std::lock_guard lock(all.mutex);
  all.free[device].push_back(place);
}

}  // namespace fvd::nccl
