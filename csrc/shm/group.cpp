#include "shm/group.h"

#include <algorithm>
#include <cstring>

#include "shm/fingerprint.h"
#include "shm/process.h"

namespace fvd::shm {
namespace {

// After that long, or a quarter of the timeout, one line says who is waited for.
constexpr std::chrono::milliseconds kPatience{10 * 1000};

}  // namespace

Group::Group(std::shared_ptr<Domain> domain, int rank, const GroupOptions& options)
    : domain_(std::move(domain)), options_(options), rank_(rank) {
  slot_index_ = domain_->take_slot();
  slot_ = domain_->slot(slot_index_);
}

Group::~Group() {
  if (!domain_->usable()) return;
  // A broken group keeps its state and reason for ranks that have not looked yet.
  auto active = static_cast<std::uint32_t>(State::kActive);
  slot_->state.code.compare_exchange_strong(active, State::kLeft, std::memory_order_seq_cst);
  ring_everybody();
  const auto done = [last = sequence(), me = rank_, epoch = epoch_, members = std::move(members_),
                     drains = std::move(drains_)] {
    for (const auto& drained : drains) {
      if (!drained()) return false;
    }
    for (std::size_t r = 0; r < members.size(); ++r) {
      const Member& member = members[r];
      if (static_cast<int>(r) == me || member.slot == nullptr || member.peer->dead.load()) continue;
      if (member.slot->state.epoch.load(std::memory_order_acquire) != epoch) continue;
      const auto code = member.slot->state.code.load(std::memory_order_acquire);
      if (code == State::kLeft || code == State::kBroken) continue;
      if (member.slot->progress.completed.load(std::memory_order_acquire) < last) return false;
    }
    return true;
  };
  domain_->return_slot(slot_index_, done);
}

// --- the steps of a collective ---

void Group::begin(const Record& record, const Call& call) {
  check_usable();
  call_ = &call;
  const std::int64_t sequence = sequence_.load(std::memory_order_relaxed) + 1;
  sequence_.store(sequence, std::memory_order_relaxed);
  parity_ = static_cast<int>(sequence & 1);
  line_ = &slot_->lines[parity_];
  line_->record = record;
  line_->record.layout = call.layout;
  line_->fingerprint = fingerprint(line_->record, epoch_, sequence);
}

std::byte* Group::one_shot() {
  if (!one_shot_reserved_) {
    domain_->reserve(slot_index_, Domain::Staging::kOneShot);
    one_shot_reserved_ = true;
  }
  return domain_->data() + domain_->layout().one_shot_offset(slot_index_, parity_);
}

std::byte* Group::pipeline() {
  if (!pipeline_reserved_) {
    domain_->reserve(slot_index_, Domain::Staging::kPipeline);
    pipeline_reserved_ = true;
  }
  return domain_->data() + domain_->layout().pipeline_offset(slot_index_);
}

Outbox* Group::open_outbox() {
  auto* outbox =
      reinterpret_cast<Outbox*>(domain_->data() + domain_->layout().outbox_offset(slot_index_));
  const auto ranks = static_cast<std::size_t>(size());
  domain_->reserve_outbox(slot_index_, offsetof(Outbox, pairs), ranks * sizeof(PairWords));
  for (std::size_t r = 0; r < ranks; ++r) {
    PairWords& pair = outbox->pairs[r];
    for (auto* word : {&pair.written, &pair.read, &pair.matched, &pair.laid, &pair.taken}) {
      word->store(0, std::memory_order_seq_cst);
    }
  }
  // Release: pairs with Mailbox::refresh; before this nobody touches the memory.
  slot_->state.outbox.store(epoch_, std::memory_order_seq_cst);
  return outbox;
}

void Group::reserve_outbox(const std::byte* begin, std::size_t bytes) {
  const std::byte* outbox = domain_->data() + domain_->layout().outbox_offset(slot_index_);
  domain_->reserve_outbox(slot_index_, static_cast<std::size_t>(begin - outbox), bytes);
}

void Group::ring_collective() {
  for (const Member& member : members_) {
    if (member.slot != slot_) ring(member.bells->collective);
  }
}

void Group::ring_everybody() noexcept {
  for (const Member& member : members_) {
    if (member.bells == nullptr) continue;
    ring(member.bells->collective);
    ring(member.bells->transfer);
  }
}

void Group::announce() {
  // Release: pairs with the load in wait_announced_by; publishes record, fingerprint, payload and
  // the one-shot area. Sequentially consistent for `ring`.
  line_->sequence.store(sequence(), std::memory_order_seq_cst);
  if (broken()) line_->sequence.store(kGaveUp, std::memory_order_seq_cst);  // aborted meanwhile
  ring_collective();
}

template <typename Ready>
void Group::wait_ready(int rank, Ready ready) {
  Clock::time_point deadline{};  // read when the wait turns out to be a long one
  const auto timeout = call_->timeout.count() > 0 ? call_->timeout : options_.timeout;
  const auto patience = std::min<std::chrono::milliseconds>(timeout / 4, kPatience);
  bool noticed = false;
  waiter_->wait(ready, [&] {
    const auto now = Clock::now();
    if (deadline == Clock::time_point{}) deadline = now + timeout;
    check_rank(rank, ready, attempt(), sequence());
    check_all_come();
    if (call_->interrupt != nullptr && *call_->interrupt) (*call_->interrupt)();
    if (now >= deadline) throw_timeout(attempt(), missing_ranks(), timeout);
    if (!noticed && now >= deadline - timeout + patience) {
      noticed = true;
      notice_late(patience);
    }
    return deadline - now;
  });
}

void Group::wait_announced_by(int rank) {
  const auto& word = member(rank).slot->lines[parity_].sequence;
  const std::int64_t sequence = this->sequence();
  wait_ready(rank, [&] { return word.load(std::memory_order_seq_cst) == sequence; });
}

void Group::wait_announced() {
  for (int step = 1; step < size(); ++step) wait_announced_by((rank_ + step) % size());
  check_fingerprints();
}

void Group::check_fingerprints() {
  for (const Member& member : members_) {
    if (member.slot->lines[parity_].fingerprint != line_->fingerprint) [[unlikely]]
      throw_mismatch();
  }
}

void Group::publish(Word word, std::int64_t round) {
  // Pairs with the load in wait_for.
  (slot_->progress.*word).store((sequence() << kRoundBits) + round + 1, std::memory_order_seq_cst);
  ring_collective();
}

void Group::wait_for(int rank, Word word, std::int64_t round) {
  const auto& progress = member(rank).slot->progress.*word;
  const std::int64_t target = (sequence() << kRoundBits) + round + 1;
  wait_ready(rank, [&] { return progress.load(std::memory_order_seq_cst) >= target; });
}

void Group::finish() noexcept {
  // Release: pairs with the look of whoever wants to use our slot again after this rank has read
  // it.
  slot_->progress.completed.store(sequence(), std::memory_order_release);
}

// --- failing ---

void Group::break_with(Kind kind, const std::string& reason) noexcept {
  if (!domain_->usable()) return;
  {
    std::lock_guard lock(reason_mutex_);
    if (broken_.load(std::memory_order_relaxed)) return;
    State& state = slot_->state;
    const std::int64_t done = slot_->progress.completed.load(std::memory_order_relaxed);
    state.kind = static_cast<std::uint32_t>(kind);
    state.broken_at = done + 1;
    std::strncpy(state.reason, reason.c_str(), sizeof(state.reason) - 1);
    state.reason[sizeof(state.reason) - 1] = '\0';
    try {
      reason_ = reason;
    } catch (...) {  // out of memory: the group is broken without words
    }
    // Release: pairs with check_broken of the others.
    state.code.store(State::kBroken, std::memory_order_seq_cst);
    // Sequentially consistent, as in `broken`: `announce` stores its word and then looks here, this
    // stores here and then looks at the word, and one of the two has to see the other.
    broken_.store(true, std::memory_order_seq_cst);
  }
  // A rank that comes late must not complete a collective with one that has given up. What this
  // rank has completed stays for those who have not yet.
  const std::int64_t at = slot_->state.broken_at;
  std::int64_t announced = at;
  slot_->lines[at & 1].sequence.compare_exchange_strong(announced, kGaveUp,
                                                        std::memory_order_seq_cst);
  ring_everybody();
}

void Group::break_with(const Error& error) noexcept {
  const auto* relayed = dynamic_cast<const RelayedError*>(&error);
  break_with(error.kind(), relayed != nullptr ? relayed->reason() : error.what());
}

void Group::check_usable() {
  FVD_CHECK(
      domain_->usable(), kAborted, where(),
      ": a forked child cannot use the process group of its parent; start ranks with spawn, or "
      "call init_process_group in the child");
  if (!broken()) [[likely]]
    return;
  std::lock_guard lock(reason_mutex_);
  const bool says_way_out = reason_.find("destroy_process_group()") != std::string::npos;
  throw Error(Kind::kAborted,
              text("fastvideo: ", where(), " is unusable since: ", reason_,
                   says_way_out ? "" : "\ndestroy_process_group() and init again."));
}

bool Group::gone(int rank) const noexcept {
  const Member& other = member(rank);
  if (other.peer->dead.load(std::memory_order_seq_cst)) return true;
  if (!all_joined_) return false;
  const State& state = other.slot->state;
  return state.epoch.load(std::memory_order_acquire) != epoch_ ||
         state.code.load(std::memory_order_acquire) == State::kLeft;
}

void Group::check_all_come() {
  for (int r = 0; r < size(); ++r) {
    if (r == rank_ || !gone(r)) continue;
    // Read after `gone`: what a rank announced before its end is to be seen. Below zero it has
    // broken the group, which check_broken tells better.
    const auto announced = member(r).slot->lines[parity_].sequence.load(std::memory_order_seq_cst);
    if (announced >= 0 && announced < sequence()) throw_gone(r, attempt());
  }
}

void Group::check_broken(const std::string& attempt, std::int64_t sequence) {
  if (broken()) {
    std::lock_guard lock(reason_mutex_);
    throw Error(Kind::kAborted, text("fastvideo: ", attempt, ": ", reason_));
  }
  for (int r = 0; r < size(); ++r) {
    const State& state = member(r).slot->state;
    if (r == rank_ || state.code.load(std::memory_order_acquire) != State::kBroken) continue;
    const auto epoch = state.epoch.load(std::memory_order_acquire);
    // While joining, only who could not join is of interest: whoever broke the group afterwards is
    // for the first call to report.
    if (epoch != (all_joined_ ? epoch_ : 0) || state.broken_at > sequence) continue;
    // The peer's memory is read once and never trusted: bounded, and the kind one of ours.
    const std::string reason(state.reason, strnlen(state.reason, sizeof(state.reason)));
    const auto kind = state.kind <= static_cast<std::uint32_t>(Kind::kLibrary)
                          ? static_cast<Kind>(state.kind)
                          : Kind::kAborted;
    // Another group of the rank may have taken the slot while its words were copied: then they are
    // not this group's. Pairs with take_slot, which changes both before a new reason is written.
    if (state.code.load(std::memory_order_seq_cst) != State::kBroken ||
        state.epoch.load(std::memory_order_seq_cst) != epoch)
      continue;
    throw RelayedError(
        kind, text("fastvideo: ", attempt, ": ", describe_member(r), " gave up: ", reason), reason);
  }
}

}  // namespace fvd::shm
