// One NCCL communicator: made without blocking, asked until ready, aborted at most once.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>

#include "nccl/context.h"
#include "nccl/graphs.h"

namespace fvd::nccl {

/// Threads: all methods from any thread. A thread that calls NCCL holds `lock()`; abort() does not
/// wait for it longer than kStuck, since a call that is stuck in NCCL is ended by nothing else.
class Handle {
 public:
  static constexpr milliseconds kStuck{500};

  explicit Handle(std::shared_ptr<Context> context) : context_(std::move(context)) {}

  /// As close() without patience.
  ~Handle();
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  /// Begins to connect; the calling thread's device must be the context's. Returns at once.
  void start(const UniqueId& id, int ranks, int rank);
  bool started() const noexcept { return comm_ != nullptr; }

  /// True once NCCL has done what it was asked for and may be asked for more. Never waits.
  /// @throws Error(kLibrary, kPeerLost) what NCCL reports; kAborted after abort()
  bool ready();

  /// Waits until ready, and looks at what else may be going on by `look`. @throws likewise, what
  /// `look` throws, and kTimeout naming `what`
  void settle(const Call& call, const std::string& what,
              const std::function<void()>& look = nullptr);

  /// For a sequence of calls on comm(). @throws Error: the group's failure, if it was aborted
  [[nodiscard]] std::unique_lock<std::mutex> lock();
  Comm comm() const noexcept { return comm_; }

  /// What follows on comm() is captured on `stream`: from now on the communicator exists as long as
  /// that graph, whatever becomes of this object. Under lock(). @throws Error(kLibrary)
  void note_capture(CudaStream stream) { graphs_.add(context_->cuda, stream); }

  /// Ends what runs on the device, from any thread, and frees the communicator.
  void abort() noexcept;

  /// Begins to leave in good order, without waiting. Of several communicators all should begin
  /// before one is closed: the others may do it in another order.
  void finalize() noexcept;

  /// finalize(), and leaves when NCCL lets it within `patience`, else as abort(). False if that
  /// may have cut off what was under way.
  bool close(milliseconds patience) noexcept;

 private:
  void check_alive() const;
  bool left_to_graphs() noexcept;

  const std::shared_ptr<Context> context_;
  std::mutex use_;
  std::atomic<bool> gone_{false};  // aborted or destroyed, or about to be
  Comm comm_ = nullptr;
  bool finalized_ = false;  // under use_
  GraphUses graphs_;        // added to under use_
};

/// Calls between ncclGroupStart and ncclGroupEnd. A group that an exception leaves open is closed,
/// or all later calls of this thread would be part of it.
class CallGroup {
 public:
  explicit CallGroup(const Context& context);
  ~CallGroup();
  CallGroup(const CallGroup&) = delete;
  CallGroup& operator=(const CallGroup&) = delete;

  /// @throws Error(kLibrary)
  void end(Comm comm);

 private:
  const Context& context_;
  bool open_ = true;
};

}  // namespace fvd::nccl
