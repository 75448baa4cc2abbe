// One rank's side of a CUDA group: how a call is enqueued, watched, and what happens when it fails.
// It knows no collective; nccl_communicator.cpp does.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "comm/store.h"
#include "nccl/context.h"
#include "nccl/control.h"
#include "nccl/handle.h"
#include "nccl/in_flight.h"
#include "nccl/lanes.h"
#include "nccl/nccl_communicator.h"
#include "nccl/push.h"
#include "nccl/staging.h"
#include "nccl/wire.h"

namespace fvd::nccl {

/// Threads: run and barrier as collectives of a Communicator, the rest from any thread.
class Core {
 public:
  /// Collective; see make_communicator().
  Core(const std::function<Libraries()>& load, std::shared_ptr<Store> store,
       std::unique_ptr<Communicator> control, const NcclGroupOptions& options);
  ~Core();
  Core(const Core&) = delete;
  Core& operator=(const Core&) = delete;

  const std::shared_ptr<Context>& context() const noexcept { return context_; }
  Lanes& lanes() noexcept { return *lanes_; }
  std::uint64_t sequence() const noexcept { return sequence_.load(std::memory_order_relaxed); }

  /// What an uneven exchange compares pair by pair, in bytes.
  struct Lengths {
    std::vector<std::uint64_t> sent, expected;
  };

  /// NCCL's part of a collective: enqueues between ncclGroupStart and ncclGroupEnd.
  using Body = std::function<void(Comm comm, CudaStream stream)>;

  /// Enqueues the next collective. `staging` has all of the call's memory added. `empty`: nothing
  /// moves, on all ranks. Whatever it throws breaks the group.
  void run(Record record, const Call& call, Staging& staging, bool empty, const Body& body,
           const Lengths* lengths = nullptr);

  bool may_push() const noexcept { return why_no_push_.empty(); }

  /// See Communicator::push (core_push.cpp).
  std::optional<std::string> push(Record record, const Call& call, std::span<const Block> outputs,
                                  const std::function<void(const Reached&)>& write);

  /// Waits on the host: for the stream, then for all ranks.
  void barrier(const Call& call);

  /// Runs `step`; what it throws breaks the group, unless it is about an argument.
  template <typename Step>
  decltype(auto) guarded(const char* what, Step&& step) {
    try {
      return step();
    } catch (const Error& error) {
      if (error.kind() == Kind::kInvalidArgument || error.kind() == Kind::kUnsupported) throw;
      break_with(error.kind(), error.what());
      context_->fate.wait_settled();
      throw Error(error.kind(), context_->told(error.what()));
    } catch (...) {
      break_with(Kind::kAborted, text(what, " on ", context_->where(), " was interrupted"));
      context_->fate.wait_settled();
      throw;
    }
  }

  /// What `step` throws while it waits for the others on the host, as of this call.
  template <typename Step>
  decltype(auto) in_words_of(const Record& record, Step&& step) const {
    try {
      return step();
    } catch (const Error& error) {
      if (error.kind() == Kind::kMismatch) throw;
      throw Error(error.kind(), text("fastvideo: ", describe(record), " seq ", record.sequence,
                                     " on ", context_->where(), " (CUDA): ", error.what()));
    }
  }

  bool capturing(CudaStream stream) const;

  /// The first failure ends the group here and lets the others know; later ones change nothing.
  void break_with(Kind kind, const std::string& words) noexcept;

 private:
  // core.cpp
  void meet(const std::function<Libraries()>& load, const NcclGroupOptions& options);
  void open(Record& record);
  // core_push.cpp
  void tell_once(const std::string& why);
  void note_pushes(const NcclGroupOptions& options, const std::vector<std::string>& whys);
  void compare(const Record& record, const Call& call, const Lengths* lengths);
  void wait_for_stream(const Record& record, const Call& call);

  // watchdog.cpp
  void start_watchdog();
  void watch();
  void look();
  void look_at_control();
  void look_at_members();
  std::uint64_t last_call_of(int member) const;
  void say_farewell() noexcept;
  void look_at_calls();
  [[noreturn]] void throw_late(const InFlight::Late& late);
  void tell_last_call() noexcept;
  struct Arrived {
    int count = 0;
    std::string lines;  // one for each rank that is missing
  };
  Arrived ask_who_arrived(const Record& record);

  const std::shared_ptr<Context> context_;
  const std::shared_ptr<Store> store_;
  Control control_;
  const NcclCheck check_;
  const milliseconds watch_interval_;
  Handle handle_;
  std::shared_ptr<EventPool> events_;
  std::shared_ptr<InFlight> in_flight_;
  std::shared_ptr<Lanes> lanes_;
  std::unique_ptr<Push> push_;
  std::string why_no_push_;     // as all ranks know since they met; empty: each call tells
  std::set<std::string> told_;  // reasons that were logged
  std::atomic<std::uint64_t> sequence_{0};

  std::mutex mutex_;  // guards what follows
  std::condition_variable stop_changed_;
  bool stop_ = false;
  Record last_;  // the last call begun
  struct Departed {
    Error words;
    Clock::time_point seen;
    std::uint64_t done = 0;  // its last call, if it left in good order
  };
  std::map<int, Departed> departed_;  // ranks that have left or died

  std::thread watchdog_;
};

}  // namespace fvd::nccl
