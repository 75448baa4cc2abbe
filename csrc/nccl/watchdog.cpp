// The thread that looks after the calls while nobody waits for them.
#include <cstdlib>
#include <system_error>
#include <thread>

#include "comm/own_thread.h"
#include "nccl/core.h"

namespace fvd::nccl {
namespace {

// How long the others have to tell what they last did.
constexpr milliseconds kAnswer{1000};
constexpr std::size_t kMaxAnswer = 300;

/// Where a rank says what it called last when the group broke, and how far it came when it left.
std::string key_of(int rank) { return text("nccl/last/", rank); }
std::string farewell_of(int rank) { return text("nccl/left/", rank); }

/// An answer comes from outside: printable, and not long.
std::string cleaned(const std::string& answer) {
  std::string words = answer.substr(0, kMaxAnswer);
  for (char& letter : words)
    if (letter < ' ' || letter > '~') letter = '?';
  return words;
}

}  // namespace

void Core::start_watchdog() {
  std::optional<Error> failure;
  try {
    watchdog_ = start_own_thread("fastvideo-nccl", [this] { watch(); });
  } catch (const std::system_error& error) {
    failure = Error(Kind::kSystem, context_->told(text("no thread to watch it: ", error.what())));
  }
  if (!failure) return;
  control_.abort(failure->kind(), failure->what());
  throw *failure;
}

void Core::watch() {
  relax_capture_rules(context_->cuda);
  // Once and for all: going back and forth would make a context on the first GPU, for each rank.
  context_->cuda.set_device(context_->device);
  std::unique_lock lock(mutex_);
  while (!stop_) {
    lock.unlock();
    try {
      if (!context_->fate.broken()) look();
    } catch (const Error& error) {
      break_with(error.kind(), error.what());
    } catch (const std::exception& error) {
      break_with(Kind::kSystem, text("the watchdog of ", context_->where(), ": ", error.what()));
    }
    lock.lock();
    stop_changed_.wait_for(lock, watch_interval_, [&] { return stop_; });
  }
}

void Core::look() {
  look_at_control();
  look_at_members();
  handle_.ready();
  look_at_calls();
  lanes_->drive();
}

void Core::look_at_control() {
  try {
    control_.look();
  } catch (const Error&) {
    // Somebody has given up, perhaps waiting for us. The device first: the store may take its time.
    push_->abort();
    tell_last_call();
    throw;
  }
}

// A rank that has left is missed by the first call it did not make, and by what is under way with
// it unless that ends soon.
void Core::look_at_members() {
  for (int member = 0; member < context_->size; ++member) {
    if (member == context_->rank) continue;
    const auto gone = control_.gone(member);
    if (!gone) continue;
    Departed departed{*gone, Clock::now()};
    {
      std::unique_lock lock(mutex_);
      if (const auto known = departed_.find(member); known != departed_.end()) {
        departed = known->second;
      } else {
        lock.unlock();
        departed.done = last_call_of(member);
        lock.lock();
        departed_.emplace(member, departed);
      }
    }
    if (Clock::now() - departed.seen < Control::kGrace) continue;
    if (in_flight_->needs(member, departed.done) || lanes_->need(member)) throw *gone;
  }
}

std::uint64_t Core::last_call_of(int member) const {
  try {
    if (!store_->has(farewell_of(member))) return 0;
    const auto said = store_->wait_for({farewell_of(member)}, milliseconds{100});
    return std::strtoull(said.front().c_str(), nullptr, 10);
  } catch (const std::exception&) {  // the store went with the rank that kept it
    return 0;
  }
}

// Before the others can see that this rank has gone.
void Core::say_farewell() noexcept {
  if (context_->size == 1 || context_->fate.broken()) return;
  control_.leave();
  try {
    store_->set(farewell_of(context_->rank), std::to_string(sequence_.load()));
  } catch (const std::exception&) {  // nobody is left to read it
  }
}

void Core::look_at_calls() {
  if (const auto late = in_flight_->look(Clock::now())) throw_late(*late);
}

void Core::tell_last_call() noexcept {
  Record last;
  {
    const std::lock_guard lock(mutex_);
    last = last_;
  }
  try {
    store_->set(key_of(context_->rank), text(last.sequence, " ", describe(last)));
  } catch (const std::exception&) {  // whoever keeps the store may have gone
  }
}

Core::Arrived Core::ask_who_arrived(const Record& record) {
  std::vector<std::string> answers(static_cast<std::size_t>(context_->size));
  const auto end = Clock::now() + kAnswer;
  int open = context_->size - 1;
  while (open > 0 && Clock::now() < end) {
    for (int rank = 0; rank < context_->size; ++rank) {
      auto& answer = answers[static_cast<std::size_t>(rank)];
      if (rank == context_->rank || !answer.empty() || !store_->has(key_of(rank))) continue;
      answer = cleaned(store_->wait_for({key_of(rank)}, milliseconds{100}).front());
      --open;
    }
    if (open > 0) std::this_thread::sleep_for(milliseconds{5});
  }
  Arrived arrived;
  for (int rank = 0; rank < context_->size; ++rank) {
    const auto& answer = answers[static_cast<std::size_t>(rank)];
    const bool here =
        rank == context_->rank || std::strtoull(answer.c_str(), nullptr, 10) >= record.sequence;
    arrived.count += here ? 1 : 0;
    if (here) continue;
    arrived.lines += text("\n  missing: ", context_->rank_text(rank), "  ",
                          answer.empty() ? "does not answer" : "last called: seq " + answer);
  }
  if (arrived.lines.empty())
    arrived.lines = "\n  all ranks have called it; NCCL or the device does not go on";
  return arrived;
}

void Core::throw_late(const InFlight::Late& late) {
  const std::string what = text("fastvideo: ", describe(late.record), " seq ", late.record.sequence,
                                " on ", context_->where(), " (CUDA)");
  push_->abort();
  tell_last_call();
  control_.abort(Kind::kTimeout, text(what, " timed out after ", seconds(late.timeout)));
  Arrived arrived;
  try {
    arrived = ask_who_arrived(late.record);
  } catch (const std::exception& error) {
    arrived = {1, text("\n  who is missing is unknown: ", error.what())};
  }
  if (late.by_device)
    arrived.lines += text("\n  the device gave up waiting for that of ", push_->missing());
  throw Error(Kind::kTimeout, text(what, " (", arrived.count, " of ", context_->size,
                                   " ranks arrived), waited ", seconds(late.waited), " of ",
                                   seconds(late.timeout), ".", arrived.lines, kWayOut));
}

}  // namespace fvd::nccl
