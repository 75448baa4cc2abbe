#include "nccl/in_flight.h"

#include <utility>

namespace fvd::nccl {

EventPool::~EventPool() {
  for (CudaEvent event : free_) cuda_.event_destroy(event);
}

CudaEvent EventPool::take() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      CudaEvent event = free_.back();
      free_.pop_back();
      return event;
    }
  }
  CudaEvent event = nullptr;
  check(cuda_, cuda_.event_create(&event, kEventDisableTiming), "cudaEventCreateWithFlags");
  return event;
}

void EventPool::give(CudaEvent event) noexcept {
  if (event == nullptr) return;
  const std::lock_guard lock(mutex_);
  free_.push_back(event);
}

bool passed(const CudaApi& cuda, CudaEvent event) {
  // Another thread may capture: a query must not end that.
  CaptureMode mode = CaptureMode::kRelaxed;
  cuda.exchange_capture_mode(&mode);
  const CudaResult result = cuda.event_query(event);
  cuda.exchange_capture_mode(&mode);
  if (result == CudaResult::kNotReady) return false;
  check(cuda, result, "a call on the device");
  return true;
}

InFlight::~InFlight() {
  for (const Entry& entry : entries_) drop(entry);
}

InFlight::Entry InFlight::begin(const Record& record, milliseconds timeout, CudaStream stream) {
  Entry entry;
  entry.record = record;
  entry.timeout = timeout;
  entry.begin = events_.take();
  entry.end = events_.take();
  mark(entry, entry.begin, stream);
  return entry;
}

void InFlight::mark(const Entry& entry, CudaEvent event, CudaStream stream) {
  const CudaResult result = cuda_.event_record(event, stream);
  if (result != CudaResult::kSuccess) drop(entry);
  check(cuda_, result, "cudaEventRecord");
}

void InFlight::end(Entry entry, CudaStream stream) {
  mark(entry, entry.end, stream);
  const std::lock_guard lock(mutex_);
  entries_.push_back(std::move(entry));
}

void InFlight::drop(const Entry& entry) noexcept {
  events_.give(entry.begin);
  events_.give(entry.end);
}

bool InFlight::has_given_up(const Entry& entry) {
  const auto& [report, number] = entry.given_up;
  if (report == nullptr) return false;
  const std::uint64_t told = __atomic_load_n(report, __ATOMIC_ACQUIRE);
  return told == number || told == number + 1;
}

std::optional<InFlight::Late> InFlight::look(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const bool done = passed(cuda_, entry->end);
    if (has_given_up(*entry)) return Late{entry->record, entry->timeout, entry->timeout, true};
    if (done) {
      events_.give(entry->begin);
      events_.give(entry->end);
      entry = entries_.erase(entry);
      continue;
    }
    if (!entry->began && passed(cuda_, entry->begin)) entry->began = now;
    if (entry->began && now - *entry->began >= entry->timeout + entry->slack) {
      return Late{entry->record, std::chrono::duration_cast<milliseconds>(now - *entry->began),
                  entry->timeout, false};
    }
    ++entry;
  }
  return std::nullopt;
}

bool InFlight::needs(int member, std::uint64_t done) const {
  const std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_) {
    const bool pair = entry.record.op == Op::kSend || entry.record.op == Op::kRecv;
    if (pair ? entry.record.root == member : entry.record.sequence > done) return true;
  }
  return false;
}

}  // namespace fvd::nccl
