// Memory on the device for what NCCL cannot take where it lies: it wants one piece per peer.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "comm/block_layout.h"
#include "nccl/context.h"

namespace fvd::nccl {

/// The memory of one call. First everything is added, then prepare() makes one allocation in the
/// order of the stream and packs the inputs; after NCCL's calls finish() unpacks the outputs and
/// gives the memory back, again in the order of the stream. All of it may be captured.
class Staging {
 public:
  /// `operation` is a literal, for messages.
  Staging(const Context& context, const char* operation)
      : context_(context), operation_(operation) {}
  ~Staging() { give_back(); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Where a part of the call's memory is to be found once prepare() has run.
  struct Place {
    std::byte* direct = nullptr;  // as the caller has it; else staged
    std::size_t offset = 0;
  };

  /// Blocks laid end to end. Already in one piece: used as they are.
  /// @throws Error(kUnsupported) for strided blocks without kernels
  Place input(ConstBlocks blocks);
  Place output(Blocks blocks);

  /// @throws Error(kLibrary)
  void prepare(CudaStream stream);
  std::byte* at(const Place& place) const {
    return place.direct != nullptr ? place.direct : memory_ + place.offset;
  }
  void finish();

  /// Gives the memory back, in the order of the stream, if finish() was not reached.
  void give_back() noexcept;

 private:
  std::size_t reserve(std::size_t bytes);
  void add(std::vector<PackedBlock>& list, Blocks blocks, std::size_t offset);

  const Context& context_;
  const char* const operation_;
  std::vector<PackedBlock> inputs_, outputs_;
  std::size_t bytes_ = 0;
  std::byte* memory_ = nullptr;
  CudaStream stream_ = nullptr;
};

}  // namespace fvd::nccl
