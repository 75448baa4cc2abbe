#include "nccl/graphs.h"

#include <algorithm>
#include <iterator>
#include <mutex>
#include <utility>
#include <vector>

namespace fvd::nccl {
namespace {

struct Kept {
  std::shared_ptr<Context> context;
  Comm comm;
  GraphUses uses;
};

struct KeptList {
  std::mutex mutex;
  std::vector<Kept> list;
};

// Never destroyed: graphs may outlive main.
KeptList& kept() {
  static auto* const list = new KeptList;
  return *list;
}

}  // namespace

void GraphUses::gone(void* count) {
  const std::unique_ptr<std::shared_ptr<Count>> owned(static_cast<std::shared_ptr<Count>*>(count));
  (*owned)->fetch_sub(1, std::memory_order_acq_rel);
}

void GraphUses::add(const CudaApi& cuda, CudaStream stream) {
  CaptureStatus status = CaptureStatus::kNone;
  unsigned long long capture = 0;
  CudaGraph graph = nullptr;
  check(cuda,
        cuda.capture_info != nullptr
            ? cuda.capture_info(stream, &status, &capture, &graph, nullptr, nullptr, nullptr)
            : cuda.capture_info_12(stream, &status, &capture, &graph, nullptr, nullptr),
        "cudaStreamGetCaptureInfo");
  if (status != CaptureStatus::kActive || capture == last_) return;
  auto count = std::make_unique<std::shared_ptr<Count>>(alive_);
  CudaUserObject object = nullptr;
  check(cuda, cuda.user_object_create(&object, count.get(), &GraphUses::gone, 1, kNoDestructorSync),
        "cudaUserObjectCreate");
  static_cast<void>(count.release());  // gone() has it
  alive_->fetch_add(1, std::memory_order_acq_rel);
  check(cuda, cuda.graph_retain_user_object(graph, object, 1, kGraphUserObjectMove),
        "cudaGraphRetainUserObject");
  last_ = capture;
}

void keep_for_graphs(std::shared_ptr<Context> context, Comm comm, GraphUses uses) noexcept {
  KeptList& all = kept();
  const std::lock_guard lock(all.mutex);
  all.list.push_back({std::move(context), comm, std::move(uses)});
}

void free_kept() noexcept {
  std::vector<Kept> idle;
  {
    KeptList& all = kept();
    const std::lock_guard lock(all.mutex);
    const auto first = std::stable_partition(all.list.begin(), all.list.end(),
                                             [](const Kept& one) { return one.uses.any(); });
    std::move(first, all.list.end(), std::back_inserter(idle));
    all.list.erase(first, all.list.end());
  }
  for (const Kept& one : idle) {
    const Context& context = *one.context;
    // Another thread may capture: freeing must not end that.
    CaptureMode mode = CaptureMode::kRelaxed;
    context.cuda.exchange_capture_mode(&mode);
    context.nccl.comm_abort(one.comm);  // alone: the other ranks free theirs when they like
    context.cuda.exchange_capture_mode(&mode);
  }
}

}  // namespace fvd::nccl
