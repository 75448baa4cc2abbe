// One piece of memory several processes can see. It has no name in any file system: it is a memfd
// whose descriptor is handed over, so the kernel frees it with its last user, however that ends.
//
// Or it is process-local (plain anonymous memory), for ranks that are threads: ThreadSanitizer
// follows addresses and sees races only where all ranks share one mapping.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <string>

namespace fvd::shm {

enum class SegmentKind { kSealed, kProcessLocal };

/// Owns one mapping (and, where it created the memory, the descriptor). Movable, not copyable.
class Segment {
 public:
  /// `bytes` of address space; nothing is reserved yet. Zero-filled.
  /// @throws Error(kSystem)
  static Segment create(const std::string& label, std::size_t bytes, SegmentKind kind);

  /// Maps somebody else's segment after checking that it is a memfd of exactly `bytes` which its
  /// owner can no longer shrink. Takes `fd` over. Read-only unless `writable`.
  /// @throws Error(kSystem) saying what was wrong with it.
  static Segment attach(int fd, std::size_t bytes, bool writable);

  Segment() = default;
  Segment(Segment&& other) noexcept;
  Segment& operator=(Segment&& other) noexcept;
  ~Segment();

  /// Makes [offset, offset + bytes) safe to touch, or throws: without this a full machine would
  /// answer the first write with SIGBUS or the out-of-memory killer. @throws Error(kSystem) with
  /// the numbers.
  void reserve(std::size_t offset, std::size_t bytes);

  /// From here on only this mapping can write: every other process maps read-only, by the kernel's
  /// word (F_SEAL_FUTURE_WRITE). Without `single_writer` only the size is sealed.
  void seal(bool single_writer);

  std::byte* data() const noexcept { return data_; }
  std::size_t bytes() const noexcept { return bytes_; }
  int fd() const noexcept { return fd_; }

 private:
  void release() noexcept;

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  int fd_ = -1;
  pid_t owner_ =
      0;  // a forked child has not inherited the mapping and must not unmap what took its place
};

}  // namespace fvd::shm
