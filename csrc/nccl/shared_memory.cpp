#include "nccl/shared_memory.h"

#include <algorithm>
#include <array>
#include <cstddef>

namespace fvd::nccl {
namespace {

constexpr std::size_t kMostKnown = 256;  // handles that are worth keeping

// Passing refusals: another allocation is still open where this one is to be, and no memory.
constexpr CudaResult kAlreadyMapped = static_cast<CudaResult>(208);
constexpr CudaResult kNoMemory = static_cast<CudaResult>(2);

}  // namespace

Shared Exporter::of(const void* data) {
  if (attributes_ == nullptr) attributes_ = pointer_attributes(cuda_);
  FVD_CHECK(attributes_ != nullptr, kUnsupported,
            "the CUDA driver does not tell what allocation an address belongs to");
  std::array<PointerAttribute, 4> which{PointerAttribute::kBufferId, PointerAttribute::kIpcCapable,
                                        PointerAttribute::kRangeStart,
                                        PointerAttribute::kRangeSize};
  std::array<std::uint64_t, 4> values{};
  std::array<void*, 4> places{&values[0], &values[1], &values[2], &values[3]};
  const auto address = reinterpret_cast<std::uintptr_t>(data);
  const CudaResult asked = attributes_(4, which.data(), places.data(), address);
  FVD_CHECK(asked == CudaResult::kSuccess, kUnsupported,
            "the CUDA driver knows nothing of an output: ", taken_error(cuda_, asked));
  const auto [id, capable, base, size] = values;
  FVD_CHECK(capable != 0 && base != 0, kUnsupported,
            "the memory of an output cannot be opened by other processes; it may come from "
            "expandable_segments or cudaMallocAsync of torch's allocator");
  auto known = known_.find(base);
  if (known == known_.end() || known->second.id != id) {
    IpcHandle handle;
    const CudaResult got = cuda_.ipc_get_handle(&handle, reinterpret_cast<void*>(base));
    FVD_CHECK(got == CudaResult::kSuccess, kUnsupported,
              "there is no handle for the memory of an output: ", taken_error(cuda_, got));
    if (known_.size() >= kMostKnown) known_.clear();
    known = known_.insert_or_assign(base, Known{id, handle}).first;
  }
  return {known->second.handle, base, size, address - base};
}

void close_handle(const CudaApi& cuda, void* data) noexcept {
  if (cuda.ipc_close_handle(data) != CudaResult::kSuccess) cuda.get_last_error();
}

bool Mappings::knows(int rank, const Shared& piece) const {
  const auto list = ranks_.find(rank);
  return list != ranks_.end() &&
         std::any_of(list->second.begin(), list->second.end(),
                     [&](const Mapping& mapping) { return mapping.handle == piece.handle; });
}

void Mappings::touch(int rank, const Shared& piece) {
  for (Mapping& mapping : of(rank))
    if (mapping.handle == piece.handle) mapping.used = call_;
}

void Mappings::give_up(int rank, const Mapping& mapping) {
  if (rank != context_.rank && mapping.data != nullptr) given_up_.push_back(mapping.data);
}

void Mappings::close(int rank, const Mapping& mapping) {
  if (rank != context_.rank && mapping.data != nullptr) close_handle(context_.cuda, mapping.data);
}

// An address that is told under another handle has been freed and allocated again. Its owner's
// stream had passed the last call with it, so our copy into it is done; and CUDA may refuse to open
// what is there now while it is open.
void Mappings::make_room(int rank, const Shared& piece) {
  auto& list = of(rank);
  std::erase_if(list, [&](const Mapping& mapping) {
    const bool replaced =
        mapping.base < piece.base + piece.size && piece.base < mapping.base + mapping.size;
    if (replaced) close(rank, mapping);
    return replaced;
  });
  if (list.size() < kMost) return;
  const auto oldest = std::min_element(
      list.begin(), list.end(), [](const Mapping& a, const Mapping& b) { return a.used < b.used; });
  give_up(rank, *oldest);
  list.erase(oldest);
}

void Mappings::drop_idle() {
  for (auto& [rank, list] : ranks_) {
    std::erase_if(list, [&, rank = rank](const Mapping& mapping) {
      const bool idle = mapping.used + kIdleCalls < call_;
      if (idle) give_up(rank, mapping);
      return idle;
    });
  }
}

Mappings::Refusal Mappings::open(int rank, const Shared& piece) {
  if (knows(rank, piece)) return {};
  make_room(rank, piece);
  Mapping mapping{piece.handle, piece.base, piece.size, nullptr, {}, call_, call_};
  Refusal refusal;
  if (rank == context_.rank) {
    mapping.data = reinterpret_cast<void*>(piece.base);
  } else {
    const CudaResult opened =
        context_.cuda.ipc_open_handle(&mapping.data, piece.handle, kIpcLazyPeerAccess);
    if (opened != CudaResult::kSuccess) {
      mapping.data = nullptr;
      refusal = {text("the memory of ", context_.rank_text(rank), " cannot be opened on GPU ",
                      context_.device, ": ", taken_error(context_.cuda, opened)),
                 opened == kAlreadyMapped || opened == kNoMemory};
    }
  }
  of(rank).push_back(std::move(mapping));
  return refusal;
}

void Mappings::refuse_new(const Refusal& refusal) {
  for (auto& [rank, list] : ranks_) {
    for (Mapping& mapping : list) {
      if (mapping.opened != call_ || !mapping.refused.empty()) continue;
      close(rank, mapping);
      mapping.data = nullptr;
      mapping.refused = refusal.why;
    }
    if (refusal.passing) std::erase_if(list, [&](const Mapping& m) { return m.opened == call_; });
  }
}

std::byte* Mappings::find(int rank, const Shared& piece, std::string& why) {
  for (Mapping& mapping : of(rank)) {
    if (mapping.handle != piece.handle) continue;
    if (mapping.refused.empty()) return static_cast<std::byte*>(mapping.data) + piece.offset;
    why = mapping.refused;
    return nullptr;
  }
  throw Error(Kind::kMismatch,
              text("fastvideo: ", context_.rank_text(rank), " of ", context_.where(),
                   " says that its memory is known, but nobody "
                   "was told of it"));
}

void Mappings::give_up_all() {
  for (const auto& [rank, list] : ranks_)
    for (const Mapping& mapping : list) give_up(rank, mapping);
  ranks_.clear();
}

}  // namespace fvd::nccl
