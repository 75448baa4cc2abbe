// Measured on Zen 4: vectors of 16 bytes, which every x86-64 has, move and stream runs as fast as
// those of 32 or 64, so no instruction set is chosen here. A call of memcpy per run halves the
// speed at 64 bytes and costs nothing any more at 256, where it is the faster one outside the
// caches. Prefetching the next runs gained nothing.
#include "shm/copy_runs.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace fvd::shm {
namespace {

constexpr std::size_t kVector = 16;
constexpr std::size_t kLine = 64;
constexpr std::size_t kShortRun = 256;  // up to here copied inline

template <std::size_t Bytes>
inline void copy_fixed(std::byte* to, const std::byte* from) {
  std::memcpy(to, from, Bytes);  // of a constant size: loads and stores, no call
}

template <std::size_t Bytes>
void copy_runs_of(std::byte* to, std::size_t to_stride, const std::byte* from,
                  std::size_t from_stride, std::size_t runs) {
  for (; runs > 0; --runs, to += to_stride, from += from_stride) copy_fixed<Bytes>(to, from);
}

/// 1 to 15 bytes.
inline void copy_tiny(std::byte* to, const std::byte* from, std::size_t bytes) {
  for (std::size_t part = 8; part > 0; part /= 2) {
    if ((bytes & part) == 0) continue;
    std::memcpy(to, from, part);
    to += part;
    from += part;
  }
}

/// 16 bytes or more; the last vector may overlap the one before.
inline void copy_vectors(std::byte* to, const std::byte* from, std::size_t bytes) {
  std::size_t at = 0;
  for (; at + kLine <= bytes; at += kLine) copy_fixed<kLine>(to + at, from + at);
  for (; at + kVector <= bytes; at += kVector) copy_fixed<kVector>(to + at, from + at);
  if (at < bytes) copy_fixed<kVector>(to + bytes - kVector, from + bytes - kVector);
}

#if defined(__x86_64__)
/// Whole lines around the caches, what lies before and behind them through the caches.
inline void stream(std::byte* to, const std::byte* from, std::size_t bytes) {
  const std::size_t head = -reinterpret_cast<std::uintptr_t>(to) % kLine;
  if (head > 0) {
    std::memcpy(to, from, head);
    to += head;
    from += head;
    bytes -= head;
  }
  for (; bytes >= kLine; bytes -= kLine, to += kLine, from += kLine) {
    const auto* source = reinterpret_cast<const __m128i*>(from);
    auto* target = reinterpret_cast<__m128i*>(to);
    const __m128i a = _mm_loadu_si128(source);
    const __m128i b = _mm_loadu_si128(source + 1);
    const __m128i c = _mm_loadu_si128(source + 2);
    const __m128i d = _mm_loadu_si128(source + 3);
    _mm_stream_si128(target, a);
    _mm_stream_si128(target + 1, b);
    _mm_stream_si128(target + 2, c);
    _mm_stream_si128(target + 3, d);
  }
  if (bytes > 0) std::memcpy(to, from, bytes);
}

constexpr std::size_t kStreamedRun = 512;  // from here on runs go around the caches

/// Long runs, and shorter ones that are whole lines.
bool worth_streaming(const std::byte* to, std::size_t to_stride, std::size_t run_bytes) {
  const std::size_t odd = reinterpret_cast<std::uintptr_t>(to) | to_stride | run_bytes;
  return run_bytes >= kStreamedRun || odd % kLine == 0;
}
#else
/// No portable way to write around the caches.
inline void stream(std::byte* to, const std::byte* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}

bool worth_streaming(const std::byte*, std::size_t, std::size_t) { return false; }
#endif

}  // namespace

void finish_streaming() noexcept {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

void copy_runs(std::byte* to, std::size_t to_stride, const std::byte* from, std::size_t from_stride,
               std::size_t runs, std::size_t run_bytes, CacheHint hint) {
  if (to_stride == run_bytes && from_stride == run_bytes) {
    run_bytes *= runs;
    runs = 1;
  }
  const auto each = [&](auto move) {
    for (; runs > 0; --runs, to += to_stride, from += from_stride) move(to, from, run_bytes);
  };
  if (hint == CacheHint::kStreaming && worth_streaming(to, to_stride, run_bytes)) {
    return each([](std::byte* t, const std::byte* f, std::size_t n) { stream(t, f, n); });
  }
  if (runs == 1 || run_bytes > kShortRun) {
    return each([](std::byte* t, const std::byte* f, std::size_t n) { std::memcpy(t, f, n); });
  }
  switch (run_bytes) {  // single elements: transposes
    case 1:
      return copy_runs_of<1>(to, to_stride, from, from_stride, runs);
    case 2:
      return copy_runs_of<2>(to, to_stride, from, from_stride, runs);
    case 4:
      return copy_runs_of<4>(to, to_stride, from, from_stride, runs);
    case 8:
      return copy_runs_of<8>(to, to_stride, from, from_stride, runs);
    default:
      break;
  }
  if (run_bytes < kVector) {
    return each([](std::byte* t, const std::byte* f, std::size_t n) { copy_tiny(t, f, n); });
  }
  each([](std::byte* t, const std::byte* f, std::size_t n) { copy_vectors(t, f, n); });
}

}  // namespace fvd::shm
