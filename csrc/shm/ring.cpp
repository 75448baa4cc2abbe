#include "shm/ring.h"

#include <unistd.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "comm/error.h"
#include "comm/log.h"

namespace fvd::shm {

RingEnd::RingEnd(std::shared_ptr<RingMemory> memory, int self, Bell& bell,
                 std::chrono::microseconds spin)
    : memory_(std::move(memory)),
      layout_(memory_->layout()),
      self_(self),
      watch_(*memory_, self),
      bell_(bell),
      waiter_(bell, memory_->address().readers + 1 <= static_cast<std::uint64_t>(usable_cores()),
              spin),
      owner_(getpid()) {}

RingEnd::~RingEnd() = default;

void RingEnd::close() noexcept {
  // A forked child has the object and not the memory.
  if (owner_ != getpid() || closing_.exchange(true, std::memory_order_seq_cst)) return;
  ring_always(bell_);
  settle();
}

void RingEnd::leave() noexcept {
  // Sequentially consistent, as close(): of the two, one sees what the other has stored.
  busy_.store(false, std::memory_order_seq_cst);
  if (closing_.load(std::memory_order_seq_cst)) [[unlikely]]
    settle();
}

void RingEnd::settle() noexcept {
  if (owner_ != getpid()) return;
  if (busy_.exchange(true, std::memory_order_seq_cst)) return;  // whoever is inside will
  if (!lends() && !std::exchange(said_, true)) say_closed();
  busy_.store(false, std::memory_order_seq_cst);
}

std::string RingEnd::site() const {
  const RingAddress& at = address();
  const std::string end = self_ == RingWatch::kWriter ? text("writer for ", at.readers, " readers")
                                                      : text("reader ", self_, " of ", at.readers);
  return text("fastvideo: ", attempted_, " on queue \"", at.name, "\", ", end, " (pid ", owner_,
              ")");
}

void RingEnd::check_open() const {
  FVD_CHECK(!closing_.load(), kAborted, site(), ": it was closed here");
}

RingEnd::Entry::Entry(RingEnd& end, const char* attempted, Purpose purpose) : end_(end) {
  FVD_CHECK(end.owner_ == getpid(), kAborted, "fastvideo: ", attempted, " on queue \"",
            end.address().name, "\": it was opened in process ", end.owner_, ", this is its child ",
            getpid(), "; attach the child by a handle (create_from_handle)");
  // Sequentially consistent, as close(): who finds settle() inside finds the end closing.
  while (end.busy_.exchange(true, std::memory_order_seq_cst)) {
    FVD_CHECK(end.closing_.load(std::memory_order_seq_cst), kInvalidArgument,
              "fastvideo: ", attempted, " on queue \"", end.address().name,
              "\": another thread is in a call on the same end; let one thread use it, or lock");
    std::this_thread::yield();  // whoever is inside leaves soon, as close() has woken him
  }
  end.attempted_ = attempted;
  if (purpose == kEndOfCall) return;
  try {
    end.check_open();
  } catch (...) {
    end.leave();
    throw;
  }
}

Clock::duration RingEnd::look(const RingCall& call, Clock::time_point begun,
                              const std::function<std::string()>& behind) {
  check_open();
  if (call.interrupt != nullptr && *call.interrupt) (*call.interrupt)();
  const auto now = Clock::now();
  if (now < call.deadline) return std::min<Clock::duration>(call.deadline - now, kLookEvery);
  const std::chrono::duration<double> waited = now - begun;
  throw Error(Kind::kTimeout, text(site(), ": timed out after ", waited.count(), " s; ", behind(),
                                   "\nThe queue is as it was; the call may be repeated."));
}

}  // namespace fvd::shm
