#include "nccl/handle.h"

#include <system_error>
#include <thread>

namespace fvd::nccl {

Handle::~Handle() { close(milliseconds{0}); }

void Handle::start(const UniqueId& id, int ranks, int rank) {
  free_kept();
  const std::lock_guard lock(use_);
  check_alive();
  CommConfig config;
  config.blocking = 0;
  const Result result = context_->nccl.comm_init_rank_config(&comm_, ranks, id, rank, &config);
  context_->check_nccl(result, "ncclCommInitRankConfig");
}

void Handle::check_alive() const {
  if (!gone_.load(std::memory_order_acquire)) return;
  context_->fate.check();
  throw Error(Kind::kAborted, text("fastvideo: ", context_->where(), " was destroyed"));
}

std::unique_lock<std::mutex> Handle::lock() {
  std::unique_lock lock(use_);
  check_alive();
  return lock;
}

bool Handle::ready() {
  const auto held = lock();
  Result state = Result::kSuccess;
  context_->check_nccl(context_->nccl.comm_get_async_error(comm_, &state), "ncclCommGetAsyncError",
                       comm_);
  context_->check_nccl(state, "an NCCL communicator", comm_);
  return state == Result::kSuccess;
}

void Handle::settle(const Call& call, const std::string& what, const std::function<void()>& look) {
  if (ready()) return;
  HostWait wait(call, context_->timeout_of(call));
  while (!ready()) {
    if (look) look();
    FVD_CHECK(wait.pause(), kTimeout, "fastvideo: ", what, " on ", context_->where(),
              ": NCCL was not ready after ", seconds(wait.timeout()),
              "; have all ranks made this call?", kWayOut);
  }
}

void Handle::abort() noexcept {
  if (gone_.exchange(true, std::memory_order_acq_rel)) return;
  // Whoever is between two calls leaves by check_alive(); whoever is inside one is woken by this.
  std::unique_lock lock(use_, std::defer_lock);
  lock_within(lock, kStuck);
  if (comm_ == nullptr) return;
  if (!graphs_.any()) {
    context_->nccl.comm_abort(comm_);
    return;
  }
  // It ends what runs at once, but returns when the graphs are gone.
  try {
    std::thread([context = context_, comm = comm_] { context->nccl.comm_abort(comm); }).detach();
  } catch (const std::system_error&) {  // no thread to be had: what runs goes on till it ends
  }
}

bool Handle::left_to_graphs() noexcept {
  const std::lock_guard lock(use_);
  if (comm_ == nullptr || !graphs_.any()) return false;
  if (!gone_.exchange(true, std::memory_order_acq_rel)) keep_for_graphs(context_, comm_, graphs_);
  return true;
}

void Handle::finalize() noexcept {
  const std::lock_guard lock(use_);
  // NCCL would wait for the graphs.
  if (comm_ == nullptr || finalized_ || graphs_.any() || gone_.load(std::memory_order_acquire))
    return;
  finalized_ = true;
  context_->nccl.comm_finalize(comm_);  // an error is found by close()
}

bool Handle::close(milliseconds patience) noexcept {
  free_kept();
  if (!context_->fate.broken() && left_to_graphs()) return true;
  if (patience.count() > 0 && !context_->fate.broken()) {
    finalize();
    const auto end = Clock::now() + patience;
    Result state = Result::kInProgress;
    const std::lock_guard lock(use_);
    if (comm_ == nullptr || gone_.load(std::memory_order_acquire)) return true;
    const NcclApi& nccl = context_->nccl;
    while (nccl.comm_get_async_error(comm_, &state) == Result::kSuccess &&
           state == Result::kInProgress && Clock::now() < end)
      std::this_thread::sleep_for(milliseconds{1});
    if (state == Result::kSuccess) {
      gone_.store(true, std::memory_order_release);
      nccl.comm_destroy(comm_);
      return true;
    }
  }
  abort();
  return false;
}

CallGroup::CallGroup(const Context& context) : context_(context) {
  context_.check_nccl(context_.nccl.group_start(), "ncclGroupStart");
}

CallGroup::~CallGroup() {
  if (open_) context_.nccl.group_end();
}

void CallGroup::end(Comm comm) {
  open_ = false;
  context_.check_nccl(context_.nccl.group_end(), "ncclGroupEnd", comm);
}

}  // namespace fvd::nccl
