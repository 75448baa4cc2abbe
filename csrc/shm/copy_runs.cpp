#include "shm/copy_runs.h"

#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace fvd::shm {

void copy_runs(std::byte* to, std::size_t to_stride, const std::byte* from, std::size_t from_stride,
               std::size_t runs, std::size_t run_bytes, CacheHint) {
  for (; runs > 0; --runs, to += to_stride, from += from_stride) std::memcpy(to, from, run_bytes);
}

}  // namespace fvd::shm
