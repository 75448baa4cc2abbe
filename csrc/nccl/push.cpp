// The device's side of a push: waits of all ranks, and the end of them.
#include "nccl/push.h"

#include <thread>
#include <utility>

namespace fvd::nccl {
namespace {

constexpr milliseconds kEndAfterAbort{500};

}  // namespace

void Push::wait(CudaStream stream, milliseconds limit, bool begins) {
  HostWords* const host = words();
  RankBarrier barrier;
  barrier.number = ++number_;
  barrier.rank = context_.rank;
  barrier.begins = begins;
  barrier.tell = tell_;
  barrier.heard = reinterpret_cast<const std::byte*>(place_.pad->heard);
  barrier.step = sizeof(RankPad::Word);
  barrier.given_up = &place_.pad->given_up;
  barrier.abort = &host->abort;
  barrier.report = host->report;
  barrier.limit = limit;
  barrier.linger = kGrace;
  context_.kernels.barrier(barrier, stream);
}

void Push::enter(CudaStream stream, milliseconds limit) {
  // Two calls at once would take each other's numbers for their own.
  if (number_ > 0)
    check(context_.cuda, context_.cuda.stream_wait_event(stream, last_, 0), "cudaStreamWaitEvent");
  wait(stream, limit, true);
  check(context_.cuda, context_.cuda.event_record(last_, stream), "cudaEventRecord");
}

void Push::leave(CudaStream stream, milliseconds limit) {
  wait(stream, limit, false);
  check(context_.cuda, context_.cuda.event_record(last_, stream), "cudaEventRecord");
  if (closable_ != nullptr || !mappings_.any_given_up()) return;
  closable_ = events_.take();
  closing_ = mappings_.take_given_up();
  check(context_.cuda, context_.cuda.event_record(closable_, stream), "cudaEventRecord");
}

void Push::leave_after_failure(CudaStream stream, milliseconds limit) noexcept {
  abort();
  try {
    wait(stream, limit, false);
  } catch (const Error&) {  // then nothing runs on the device any more
  }
}

void Push::close_memory(const std::vector<void*>& list) noexcept {
  for (void* data : list) close_handle(context_.cuda, data);
}

void Push::close_what_is_closable() {
  if (closable_ == nullptr || !passed(context_.cuda, closable_)) return;
  events_.give(std::exchange(closable_, nullptr));
  close_memory(std::exchange(closing_, {}));
}

std::string Push::missing() const {
  const HostWords* const host = words();
  if (host == nullptr) return {};
  const std::uint64_t bits = __atomic_load_n(&host->report[1], __ATOMIC_RELAXED);
  std::string names;
  for (int rank = 0; rank < context_.size; ++rank)
    if ((bits >> rank & 1) != 0) names += (names.empty() ? "" : ", ") + context_.rank_text(rank);
  return names;
}

void Push::abort() noexcept {
  aborted_.store(true, std::memory_order_seq_cst);
  if (HostWords* const host = words_.load(std::memory_order_seq_cst))
    std::atomic_ref(host->abort).store(1, std::memory_order_seq_cst);
}

bool Push::device_done() const { return number_ == 0 || passed(context_.cuda, last_); }

bool Push::finish(milliseconds patience) noexcept {
  try {
    const auto end = Clock::now() + patience;
    while (!device_done()) {
      if (Clock::now() >= end) return false;
      std::this_thread::sleep_for(milliseconds{1});
    }
    return true;
  } catch (const Error&) {  // the device, or at the end of the process the driver, is gone
    return false;
  }
}

bool Push::close() noexcept {
  if (place_.pad == nullptr) return true;
  const HostWords* const host = words();
  const bool reported = host != nullptr && __atomic_load_n(&host->report[0], __ATOMIC_ACQUIRE) != 0;
  bool well = !context_.fate.broken() && !reported;
  if (!finish(milliseconds{0})) {
    well = false;
    abort();
    // What still runs after that uses what it has: it is never closed.
    if (!finish(kEndAfterAbort)) return false;
  }
  const RelaxedScope relaxed(context_.cuda);
  for (Mappings* all : {&pads_, &mappings_}) {
    all->give_up_all();
    close_memory(all->take_given_up());
  }
  close_memory(std::exchange(closing_, {}));
  for (CudaEvent* event : {&last_, &closable_}) events_.give(std::exchange(*event, nullptr));
  // A rank that was cut off may yet tell its number.
  if (well) give_place(context_.device, place_);
  return well;
}

}  // namespace fvd::nccl
