#include "nccl/staging.h"

#include <utility>

namespace fvd::nccl {
namespace {

constexpr std::size_t kAlignment = 256;  // as CUDA's own allocations; kernels like 16 at least

/// The one piece that `blocks` are, if they lie end to end in memory; null if they do not. An empty
/// list is a piece of nothing, whose address nobody looks at.
std::byte* one_piece(Blocks blocks) {
  static std::byte nothing;
  std::byte* begin = nullptr;
  std::byte* end = nullptr;
  for (const Block& block : blocks) {
    if (block.bytes() == 0) continue;
    if (!block.contiguous() || (begin != nullptr && block.data != end)) return nullptr;
    if (begin == nullptr) begin = block.data;
    end = block.data + block.bytes();
  }
  return begin == nullptr ? &nothing : begin;
}

/// The same blocks as if they could be written; only Staging::output's are.
std::vector<Block> writable(ConstBlocks blocks) {
  std::vector<Block> result;
  result.reserve(blocks.size());
  for (const ConstBlock& block : blocks)
    result.push_back(
        {const_cast<std::byte*>(block.data), block.runs, block.run_bytes, block.run_stride});
  return result;
}

/// Copies what lies in one piece with the runtime and returns the rest, which needs a kernel.
template <typename Copy>
std::vector<PackedBlock> strided_rest(std::span<const PackedBlock> list, Copy&& copy) {
  std::vector<PackedBlock> rest;
  for (const PackedBlock& one : list) {
    if (one.block.bytes() == 0) continue;
    one.block.contiguous() ? copy(one) : rest.push_back(one);
  }
  return rest;
}

}  // namespace

void Staging::give_back() noexcept {
  if (memory_ != nullptr) context_.cuda.free_async(std::exchange(memory_, nullptr), stream_);
}

std::size_t Staging::reserve(std::size_t bytes) {
  const std::size_t offset = bytes_;
  bytes_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return offset;
}

void Staging::add(std::vector<PackedBlock>& list, Blocks blocks, std::size_t offset) {
  for (const Block& block : blocks) {
    FVD_CHECK(block.contiguous() || context_.kernels.pack != nullptr, kUnsupported,
              "fastvideo: ", operation_, " on ", context_.where(),
              ": strided memory on a GPU needs the kernels of "
              "this package's CUDA extension, which this build has not; make the tensor "
              "contiguous()");
    list.push_back({block, offset});
    offset += block.bytes();
  }
}

Staging::Place Staging::input(ConstBlocks blocks) {
  const auto same = writable(blocks);
  if (std::byte* direct = one_piece(same)) return {direct, 0};
  const std::size_t offset = reserve(bytes_of(blocks));
  add(inputs_, same, offset);
  return {nullptr, offset};
}

Staging::Place Staging::output(Blocks blocks) {
  if (std::byte* direct = one_piece(blocks)) return {direct, 0};
  const std::size_t offset = reserve(bytes_of(blocks));
  add(outputs_, blocks, offset);
  return {nullptr, offset};
}

void Staging::prepare(CudaStream stream) {
  stream_ = stream;
  if (bytes_ == 0) return;
  void* memory = nullptr;
  check(context_.cuda, context_.cuda.malloc_async(&memory, bytes_, stream), "cudaMallocAsync");
  memory_ = static_cast<std::byte*>(memory);
  const auto rest = strided_rest(inputs_, [&](const PackedBlock& one) {
    check(context_.cuda,
          context_.cuda.memcpy_async(memory_ + one.offset, one.block.data, one.block.bytes(),
                                     CopyKind::kDefault, stream),
          "cudaMemcpyAsync");
  });
  if (!rest.empty()) context_.kernels.pack(rest, memory_, stream);
}

void Staging::finish() {
  const auto rest = strided_rest(outputs_, [&](const PackedBlock& one) {
    check(context_.cuda,
          context_.cuda.memcpy_async(one.block.data, memory_ + one.offset, one.block.bytes(),
                                     CopyKind::kDefault, stream_),
          "cudaMemcpyAsync");
  });
  if (!rest.empty()) context_.kernels.unpack(memory_, rest, stream_);
  if (memory_ == nullptr) return;
  std::byte* memory = std::exchange(memory_, nullptr);
  check(context_.cuda, context_.cuda.free_async(memory, stream_), "cudaFreeAsync");
}

}  // namespace fvd::nccl
