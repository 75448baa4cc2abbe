// The calls that are under way on the device, and which of them take too long.
#pragma once

#include <list>
#include <mutex>
#include <optional>
#include <vector>

#include "nccl/context.h"
#include "nccl/wire.h"

namespace fvd::nccl {

/// Events without timing, used again and again: making one costs more than recording it.
/// Threads: all methods from any thread.
class EventPool {
 public:
  explicit EventPool(const CudaApi& cuda) : cuda_(cuda) {}
  ~EventPool();
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;

  CudaEvent take();
  void give(CudaEvent event) noexcept;

 private:
  const CudaApi& cuda_;
  std::mutex mutex_;
  std::vector<CudaEvent> free_;
};

/// Threads: all methods from any thread.
class InFlight {
 public:
  InFlight(const CudaApi& cuda, EventPool& events) : cuda_(cuda), events_(events) {}
  ~InFlight();
  InFlight(const InFlight&) = delete;
  InFlight& operator=(const InFlight&) = delete;

  /// How the device tells that it gave a call up itself: by its number, or the one after it.
  struct GivenUp {
    std::uint64_t* report = nullptr;  // null: it never does
    std::uint64_t number = 0;
  };

  struct Entry {
    Record record;
    milliseconds timeout{0};
    milliseconds slack{0};  // beyond it: who else looks at the clock comes first
    GivenUp given_up;
    CudaEvent begin = nullptr, end = nullptr;
    std::optional<Clock::time_point> began;  // when its beginning was first seen
  };

  /// Before and after the call is enqueued on `stream`. Between them the entry is the caller's.
  Entry begin(const Record& record, milliseconds timeout, CudaStream stream);
  void end(Entry entry, CudaStream stream);
  /// The call was not enqueued after all.
  void drop(const Entry& entry) noexcept;

  struct Late {
    Record record;
    milliseconds waited{0}, timeout{0};
    bool by_device = false;  // which gave it up
  };
  /// Forgets what is done; the first call that has run longer than it may, if there is one. Time is
  /// counted from where the device begins with the call: waiting for the caller's own kernels
  /// before it is not the others' fault.
  /// @throws Error(kLibrary) if the device reports an error
  std::optional<Late> look(Clock::time_point now);

  /// Whether `member` has a part in something that is under way, beside the collectives up to
  /// `done`.
  bool needs(int member, std::uint64_t done) const;

 private:
  static bool has_given_up(const Entry& entry);
  void mark(const Entry& entry, CudaEvent event, CudaStream stream);

  const CudaApi& cuda_;
  EventPool& events_;
  mutable std::mutex mutex_;
  std::list<Entry> entries_;
};

/// Whether the device has passed `event`. @throws Error(kLibrary)
bool passed(const CudaApi& cuda, CudaEvent event);

}  // namespace fvd::nccl
