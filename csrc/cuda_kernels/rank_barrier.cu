// The kernel in which ranks wait for each other: one thread for each rank, see rank_barrier.h.
//
// What came before it in the stream has happened before it begins, and a release with system scope
// makes that visible to who acquires the number; so a copy into a peer's memory may stand before
// it, and reading what peers have written after it, with nothing else between.
#include <cuda_runtime.h>

#include "cuda_kernels/rank_barrier.h"
#include "cuda_kernels/told.h"

namespace fvd::cuda {
namespace {

// Ranks that share a GPU take turns on it, so a long wait must leave room; the short ones, which
// are all that count where each has its own, end before the first pause.
constexpr std::uint32_t kTurnsWithoutPause = 1024;
constexpr std::uint32_t kTurnsWithoutLooking = 32;  // at the clock, and at the host's memory
constexpr std::uint32_t kPauseNanoseconds = 200;
constexpr std::uint32_t kLongPauseNanoseconds = 100000;

__device__ __forceinline__ void store_release(std::uint64_t* word, std::uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(word), "l"(value) : "memory");
}
__device__ __forceinline__ std::uint64_t load_acquire(const std::uint64_t* word) {
  std::uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
  return value;
}
__device__ __forceinline__ std::uint32_t load_relaxed(const std::uint32_t* word) {
  std::uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}
__device__ __forceinline__ std::uint64_t nanoseconds() {
  std::uint64_t value;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(value)::"memory");
  return value;
}

/// False if it was given up.
__device__ bool wait_for(const Barrier& barrier, std::uint32_t peer) {
  const auto* word = reinterpret_cast<const std::uint64_t*>(barrier.heard + peer * barrier.step);
  const Patience patience{nanoseconds(), barrier.limit};
  for (std::uint32_t turn = 1; load_acquire(word) < barrier.number; ++turn) {
    if (turn % kTurnsWithoutLooking == 0 &&
        !patience.lasts(nanoseconds(), load_relaxed(barrier.abort) != 0)) {
      return false;
    }
    if (turn >= kTurnsWithoutPause) __nanosleep(kPauseNanoseconds);
  }
  return true;
}

__device__ void give_up(const Barrier& barrier, std::uint64_t missing) {
  *barrier.given_up = 1;
  barrier.report[1] = missing;
  __threadfence_system();
  store_release(&barrier.report[0], barrier.number);
  const std::uint64_t begin = nanoseconds();
  while (nanoseconds() - begin < barrier.linger) __nanosleep(kLongPauseNanoseconds);
}

__global__ void __launch_bounds__(kMostBarrierRanks)
    barrier_kernel(const __grid_constant__ Barrier barrier) {
  __shared__ unsigned long long missing;
  // Who has given up a wait has not copied what was to come after it: nobody may take it for having
  // come to the next one.
  if (load_relaxed(barrier.given_up) != 0) return;
  const std::uint32_t peer = threadIdx.x;
  // After an abort nobody is told to have come: he would write into memory of this rank.
  if (peer == 0) missing = load_relaxed(barrier.abort) != 0 ? bit_of(barrier.rank) : 0;
  __syncthreads();
  const bool aborted = missing != 0;
  __syncthreads();
  if (!aborted && peer < barrier.ranks && peer != barrier.rank) {
    __threadfence_system();
    store_release(barrier.tell[peer], barrier.number);
    if (!wait_for(barrier, peer)) atomicOr(&missing, bit_of(peer));
  }
  __syncthreads();
  if (peer != 0) return;
  if (barrier.begins != 0 && load_relaxed(barrier.abort) != 0) missing |= bit_of(barrier.rank);
  if (missing != 0) give_up(barrier, missing);
}

}  // namespace

int wait_for_ranks(const Barrier* barrier, void* stream) {
  Barrier argument = *barrier;
  const std::uint32_t threads = (barrier->ranks + 31) / 32 * 32;
  void* arguments[] = {&argument};
  return told(cudaLaunchKernel(barrier_kernel, dim3(1), dim3(threads), arguments, 0,
                               static_cast<cudaStream_t>(stream)));
}

int load_barrier_kernel() {
  cudaFuncAttributes attributes;
  return told(cudaFuncGetAttributes(&attributes, barrier_kernel));
}

}  // namespace fvd::cuda
