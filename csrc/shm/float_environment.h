// The floating-point mode of the calling thread, set to the default for the life of an object.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace fvd::shm {

/// Rounds to nearest and keeps subnormals. A user may have chosen otherwise on some ranks or
/// threads (torch.set_flush_denormal), and then ranks would not get the same bits.
class FloatEnvironment {
 public:
#if defined(__x86_64__)
  FloatEnvironment() noexcept : saved_(_mm_getcsr()) {
    if (changed()) _mm_setcsr(kDefault);
  }
  ~FloatEnvironment() {
    if (changed()) _mm_setcsr(saved_);
  }

 private:
  static constexpr std::uint32_t kDefault = 0x1f80;  // all exceptions masked
  static constexpr std::uint32_t kSticky = 0x3f;     // exception flags, of no effect
  bool changed() const noexcept { return (saved_ & ~kSticky) != kDefault; }
  std::uint32_t saved_;
#elif defined(__aarch64__)
  FloatEnvironment() noexcept {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    if (saved_ != 0) asm volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}));
  }
  ~FloatEnvironment() {
    if (saved_ != 0) asm volatile("msr fpcr, %0" : : "r"(saved_));
  }

 private:
  std::uint64_t saved_ = 0;
#else
  FloatEnvironment() noexcept {}
#endif

 public:
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
};

}  // namespace fvd::shm
