#include "nccl/context.h"

#include <algorithm>
#include <cstdio>
#include <thread>

namespace fvd::nccl {

std::string seconds(milliseconds time) {
  char buffer[32];
  std::snprintf(buffer, sizeof(buffer), "%.1f s", static_cast<double>(time.count()) / 1000.0);
  return buffer;
}

bool Fate::set(Kind kind, const std::string& words) noexcept {
  std::lock_guard lock(mutex_);
  if (first_.has_value()) return false;
  first_.emplace(kind, words);
  broken_.store(true, std::memory_order_release);
  return true;
}

void Fate::wait_settled() const noexcept {
  if (!broken()) return;
  const auto end = Clock::now() + std::chrono::seconds{2};
  while (!settled() && Clock::now() < end) std::this_thread::sleep_for(milliseconds{1});
}

void Fate::check() const {
  if (!broken()) return;
  std::lock_guard lock(mutex_);
  throw *first_;
}

void Fate::check_usable(const std::string& where) const {
  if (!broken()) return;
  std::lock_guard lock(mutex_);
  throw Error(Kind::kAborted, text("fastvideo: ", where, " is broken (CUDA): ", first_->what()));
}

std::string Context::told(const std::string& words) const {
  const bool complete = words.find("\nGroup is now unusable") != std::string::npos;
  return text(words.starts_with("fastvideo: ") ? "" : text("fastvideo: ", where(), " (CUDA): "),
              words, complete ? "" : kWayOut);
}

std::string Context::rank_text(int member) const {
  const auto index = static_cast<std::size_t>(member);
  if (index >= group.global_ranks.size() || group.global_ranks[index] == member)
    return text("rank ", member);
  return text("rank ", member, " (global rank ", group.global_ranks[index], ")");
}

void Context::check_nccl(Result result, const char* what, Comm comm) const {
  if (result == Result::kSuccess || result == Result::kInProgress) return;
  const char* details = comm == nullptr ? nullptr : nccl.get_last_error(comm);
  throw Error(result == Result::kRemoteError ? Kind::kPeerLost : Kind::kLibrary,
              text("fastvideo: ", what, " on ", where(), " failed: ", nccl.get_error_string(result),
                   " (NCCL ", version_text(nccl.version), " error ", static_cast<int>(result), ")",
                   details == nullptr || *details == '\0' ? "" : text(": ", details)));
}

void lock_within(std::unique_lock<std::mutex>& lock, milliseconds limit) noexcept {
  const auto end = Clock::now() + limit;
  while (!lock.try_lock() && Clock::now() < end) std::this_thread::sleep_for(milliseconds{1});
}

bool HostWait::pause() {
  const auto now = Clock::now();
  if (now - begin_ >= timeout_) return false;
  if (call_.interrupt != nullptr && *call_.interrupt && now >= next_interrupt_) {
    (*call_.interrupt)();
    next_interrupt_ = now + milliseconds{100};
  }
  // Most waits end within microseconds; the long ones need no more than a look per millisecond.
  if (turns_++ < 64) {
    std::this_thread::yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds{std::min(turns_, 1000U)});
  }
  return true;
}

}  // namespace fvd::nccl
