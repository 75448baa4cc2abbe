// Sends and receives, and several calls as one work.
#include <utility>

#include "c10d/backend.h"
#include "c10d/transfer_work.h"
#include "c10d/translate_errors.h"

namespace fvd::c10d_ {
namespace {

const char* operation_of(::c10d::OpType type) {
  return type == ::c10d::OpType::SEND ? "send" : "recv";
}

}  // namespace

WorkPtr FastVideoBackend::send(Tensors& tensors, int destination, int tag) {
  return transfer(::c10d::OpType::SEND, tensors, destination, tag);
}

WorkPtr FastVideoBackend::recv(Tensors& tensors, int source, int tag) {
  return transfer(::c10d::OpType::RECV, tensors, source, tag);
}

WorkPtr FastVideoBackend::recvAnysource(Tensors& tensors, int tag) {
  return transfer(::c10d::OpType::RECVANYSOURCE, tensors, Communicator::kAnySource, tag);
}

WorkPtr FastVideoBackend::transfer(::c10d::OpType type, Tensors& tensors, int peer, int tag) {
  CallMemory memory;
  auto where = site(operation_of(type));
  where.memory = &memory;
  const bool any = type == ::c10d::OpType::RECVANYSOURCE;
  const bool sends = type == ::c10d::OpType::SEND;
  TORCH_CHECK_VALUE(any || (peer >= 0 && peer < size_), where.prefix(), "there is no rank ", peer,
                    " in this group of ", size_);
  TORCH_CHECK_VALUE(any || peer != rank_, where.prefix(), "rank ", rank_,
                    " cannot exchange messages with itself; copy the tensor");
  TORCH_CHECK_VALUE(tag >= 0, where.prefix(), "the tag must not be negative, got ", tag);
  const auto& tensor = only(where, tensors, "tensor");
  TORCH_CHECK_VALUE(sends || !tensor.defined() || tensor.is_cpu() || tensor.is_contiguous(),
                    where.prefix(), "the tensor is on ", tensor.device(),
                    " and not contiguous; receive into a contiguous one");
  auto data = view(where, tensor, sends ? Access::kRead : Access::kWrite, "tensor");
  const auto timeout = timeout_.load();
  const char* title = sends ? "fastvideo:send" : "fastvideo:recv";
  if (!memory.device.is_cpu()) [[unlikely]] {
    DeviceCall call{type, profiling_title(title), where.operation, timeout, 0, true};
    auto device_work =
        translated([&] { return device_->transfer(call, std::move(data), sends, peer, tag); });
    if (coalescing()) note_coalesced(device_work);
    return device_work;
  }
  auto work = translated([&] {
    auto communicator = runner_->communicator();
    Call call;
    call.timeout = timeout;
    call.interrupt = runner_->host().interrupt_hook();
    auto started = sends ? communicator->send(data.const_block(), data.type, peer, tag, call)
                         : communicator->recv(data.block(), data.type, peer, tag, call);
    return c10::make_intrusive<TransferWork>(rank_, type, profiling_title(title), runner_,
                                             std::move(communicator), std::move(started),
                                             std::move(data), timeout);
  });
  if (coalescing()) note_coalesced(work);
  return work;
}

bool FastVideoBackend::coalescing() const {
  if (!coalescing_open_.load(std::memory_order_relaxed)) return false;
  std::lock_guard lock(coalescing_mutex_);
  return coalescing_thread_ == std::this_thread::get_id();
}

void FastVideoBackend::note_coalesced(const WorkPtr& work) {
  std::lock_guard lock(coalescing_mutex_);
  coalesced_.push_back(work);
}

void FastVideoBackend::startCoalescing() {
  std::lock_guard lock(coalescing_mutex_);
  coalesced_.clear();  // left over if an exception skipped endCoalescing
  coalescing_thread_ = std::this_thread::get_id();
  coalescing_open_.store(true, std::memory_order_relaxed);
}

WorkPtr FastVideoBackend::endCoalescing() {
  std::lock_guard lock(coalescing_mutex_);
  TORCH_CHECK_VALUE(coalescing_thread_ == std::this_thread::get_id(),
                    site("endCoalescing").prefix(), "no startCoalescing before it on this thread");
  coalescing_thread_ = {};
  coalescing_open_.store(false, std::memory_order_relaxed);
  return c10::make_intrusive<CoalescedWork>(rank_, std::exchange(coalesced_, {}));
}

}  // namespace fvd::c10d_
