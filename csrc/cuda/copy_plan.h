// From strided arrays to what the kernel copies. No memory is touched, no CUDA is needed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/copy_part.h"

namespace fvd::cuda {

/// Two arrays of the same sizes. Strides are in elements, outermost dimension first; those of
/// `from` may be 0 or overlap.
struct StridedCopy {
  const void* from = nullptr;
  void* to = nullptr;
  std::span<const std::int64_t> sizes;
  std::span<const std::int64_t> from_strides;
  std::span<const std::int64_t> to_strides;
  std::size_t element_bytes = 1;
};

/// Copies that are made together, by as few launches as their number allows: one for 256 arrays of
/// up to four dimensions.
class CopyPlan {
 public:
  /// Nothing if there are no elements.
  void add(const StridedCopy& copy);

  /// One launch: a range of parts() whose tiles are numbered from 0.
  struct Launch {
    std::size_t first = 0;
    std::uint32_t count = 0;
    std::uint32_t tiles = 0;
  };
  std::span<const Launch> launches() const noexcept { return launches_; }
  std::span<const CopyPart> parts() const noexcept { return parts_; }
  std::span<const CopyPart> parts(const Launch& launch) const noexcept {
    return parts().subspan(launch.first, launch.count);
  }
  bool empty() const noexcept { return parts_.empty(); }

  /// Bytes that are copied: each is read once and written once.
  std::uint64_t bytes() const noexcept { return bytes_; }

 private:
  struct Extent {
    std::uint64_t size;
    std::int64_t from_stride, to_stride;  // in bytes
  };
  void add(const std::byte* from, std::byte* to, std::span<const Extent> extents,
           unsigned unit_log2);
  void append(const CopyPart& part);

  std::vector<CopyPart> parts_;
  std::vector<Launch> launches_;
  std::uint64_t bytes_ = 0;
};

}  // namespace fvd::cuda
