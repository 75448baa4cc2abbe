// Memory between two pages that cannot be touched, for finding reads and writes out of bounds.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>

namespace fvd::test {

class GuardedMemory {
 public:
  explicit GuardedMemory(std::size_t bytes) : page_(static_cast<std::size_t>(getpagesize())) {
    inner_ = (bytes + page_ - 1) / page_ * page_;
    void* whole = mmap(nullptr, inner_ + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (whole == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<std::byte*>(whole);
    if (mprotect(base_ + page_, inner_, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  }
  ~GuardedMemory() { munmap(base_, inner_ + 2 * page_); }
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;

  /// The first byte right behind the lower guard.
  std::byte* begin() { return base_ + page_; }

  /// `bytes` bytes whose last one lies right before the upper guard.
  std::byte* last(std::size_t bytes) { return base_ + page_ + inner_ - bytes; }

 private:
  std::size_t page_;
  std::size_t inner_ = 0;
  std::byte* base_ = nullptr;
};

}  // namespace fvd::test
