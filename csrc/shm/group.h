// One rank's view of one group: everybody's words, what it announces, what it waits for, how it
// fails.
//
// It knows no data movement. A collective is: begin, announce, wait_announced, then rounds of
// publish and wait_for, then finish.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/error.h"
#include "comm/options.h"
#include "shm/domain.h"
#include "shm/slot.h"
#include "shm/wait.h"

namespace fvd::shm {

/// Thrown by a rank that gives up because another one did. Carries that one's reason, which is what
/// it passes on: the first reason reaches everybody, whatever the way.
class RelayedError : public Error {
 public:
  RelayedError(Kind kind, const std::string& message, std::string reason)
      : Error(kind, message), reason_(std::move(reason)) {}
  const std::string& reason() const noexcept { return reason_; }

 private:
  std::string reason_;
};

/// A rank as the others see it. Read-only but for the bells.
struct Member {
  std::shared_ptr<Peer> peer;
  std::size_t slot_index = 0;
  const Slot* slot = nullptr;
  Bells* bells = nullptr;
  int global_rank = 0;

  const std::byte* one_shot(int parity) const {
    return peer->data + peer->layout().one_shot_offset(slot_index, parity);
  }
  const std::byte* pipeline() const {
    return peer->data + peer->layout().pipeline_offset(slot_index);
  }
  const std::byte* outbox() const { return peer->data + peer->layout().outbox_offset(slot_index); }
};

/// Threads: one collective at a time; `abort`, `broken` and the checks of transfers from any
/// thread.
class Group {
 public:
  /// Collective. See make_communicator for what it throws.
  static std::unique_ptr<Group> join(std::shared_ptr<Domain> domain, Store& store, int rank,
                                     int size, const GroupOptions& options);
  ~Group();

  int rank() const noexcept { return rank_; }
  int size() const noexcept { return static_cast<int>(members_.size()); }
  const Member& member(int rank) const { return members_[static_cast<std::size_t>(rank)]; }
  const GroupOptions& options() const noexcept { return options_; }
  std::uint64_t epoch() const noexcept { return epoch_; }
  std::int64_t sequence() const noexcept { return sequence_.load(std::memory_order_relaxed); }
  bool core_for_each() const noexcept { return core_for_each_; }
  Domain& domain() noexcept { return *domain_; }
  const std::shared_ptr<Domain>& shared_domain() const noexcept { return domain_; }

  // Sizes all ranks agreed on when they joined.
  std::size_t one_shot_bytes() const noexcept { return one_shot_bytes_; }
  std::size_t pipeline_bytes() const noexcept { return pipeline_bytes_; }

  // --- the steps of a collective ---

  /// Opens the next collective. Throws kAborted if the group is broken. `call` outlives it.
  void begin(const Record& record, const Call& call);

  std::byte* inline_payload() noexcept { return line_->payload; }
  const std::byte* inline_payload(int rank) const noexcept {
    return member(rank).slot->lines[parity_].payload;
  }
  /// This rank's one-shot area of this collective, safe to write: what the others may still read
  /// lies in the other half.
  std::byte* one_shot();
  const std::byte* one_shot(int rank) const { return member(rank).one_shot(parity_); }
  std::byte* pipeline();

  /// This rank's outbox for transfers: the words reserved and at zero, which the others learn.
  Outbox* open_outbox();
  /// Makes a part of it safe to write. @throws Error(kSystem)
  void reserve_outbox(const std::byte* begin, std::size_t bytes);
  Bells& own_bells() noexcept { return *domain_->self()->bells(slot_index_); }

  void announce();

  /// Returns when everybody has announced the same collective. @throws kMismatch if one is another.
  void wait_announced();

  /// What `rank` announced; after wait_announced.
  const Record& record(int rank) const { return member(rank).slot->lines[parity_].record; }

  using Word = std::atomic<std::int64_t> Progress::*;
  /// Lets the others know that round `round` of `word` is done.
  void publish(Word word, std::int64_t round);
  /// Waits until `rank` has done round `round` of `word`.
  void wait_for(int rank, Word word, std::int64_t round);

  void finish() noexcept;

  /// `drained` must hold as well before this rank's memory of the group is used for another one.
  void also_drain(std::function<bool()> drained) { drains_.push_back(std::move(drained)); }

  // --- failing ---

  /// Breaks the group for good, here and (as soon as they look) on all ranks. Never throws. The
  /// first reason stays.
  void break_with(Kind kind, const std::string& reason) noexcept;
  void break_with(const Error& error) noexcept;
  bool broken() const noexcept { return broken_.load(std::memory_order_seq_cst); }
  /// @throws kAborted with the first reason if the group is broken or this is a forked child
  void check_usable();

  /// For who looks on: throws if a rank has broken the group, or if `rank` is gone.
  void check_unbroken() { check_broken(where(), std::numeric_limits<std::int64_t>::max()); }
  void check_there(int rank) {
    if (rank != rank_ && gone(rank)) throw_gone(rank, where());
  }

  /// To be called while waiting for `rank` (-1: for anybody) in vain. `ready` is looked at once
  /// more before a dead or departed rank is blamed: it may have done its part first. A rank that
  /// broke the group at a collective after `sequence` has done its part for that one.
  template <typename Ready>
  void check_rank(int rank, Ready&& ready, const std::string& attempt,
                  std::int64_t sequence = std::numeric_limits<std::int64_t>::max()) {
    check_broken(attempt, sequence);
    if (rank < 0) {
      check_anybody_there(attempt, ready);
    } else if (gone(rank) && !ready()) {
      throw_gone(rank, attempt);
    }
  }
  [[noreturn]] void throw_timeout(const std::string& attempt, const std::vector<int>& missing,
                                  std::chrono::milliseconds waited) const;
  /// The same for a transfer, whose other side, `awaited`, has not done its part.
  [[noreturn]] void throw_transfer_timeout(const std::string& attempt,
                                           const std::vector<int>& awaited,
                                           std::chrono::milliseconds waited) const;

  std::string attempt() const;  // "all_reduce(SUM, float32 x 8) seq 3 on group \"tp\" ..."
  std::string where() const;    // "group \"tp\", rank 1 of 4"
  std::string describe_member(int rank) const;  // "rank 2 (pid 8812)"

  void ring_collective();
  void ring_everybody() noexcept;

 private:
  Group(std::shared_ptr<Domain> domain, int rank, const GroupOptions& options);

  void meet(Store& store, int size);
  void meet(Store& store, int size, const std::string& prefix, const std::string& where,
            JoinLimits& limits);
  void wait_all_active(const std::string& where, JoinLimits& limits);
  void wait_announced_by(int rank);
  void check_fingerprints();
  template <typename Ready>
  void wait_ready(int rank, Ready ready);
  bool gone(int rank) const noexcept;
  /// Whoever waits for one rank may do so for long; another that has died, or left, before it
  /// announced this collective will not come either. @throws kPeerLost
  void check_all_come();
  void check_broken(const std::string& attempt, std::int64_t sequence);
  template <typename Ready>
  void check_anybody_there(const std::string& attempt, Ready&& ready) {
    for (int r = 0; r < size(); ++r) {
      if (r != rank_ && !gone(r)) return;
    }
    if (!ready()) throw_gone(rank_ == 0 && size() > 1 ? 1 : 0, attempt);
  }
  [[noreturn]] void throw_gone(int rank, const std::string& attempt);
  [[noreturn]] void throw_mismatch();
  std::vector<int> missing_ranks() const;
  std::string list_ranks(const std::vector<int>& missing) const;
  void notice_late(std::chrono::milliseconds waited) const;
  std::string last_finished(int rank) const;

  std::shared_ptr<Domain> domain_;
  GroupOptions options_;
  int rank_;
  std::vector<Member> members_;
  std::uint64_t epoch_ = 0;
  std::size_t slot_index_ = 0;
  Slot* slot_ = nullptr;
  std::size_t one_shot_bytes_ = 0;
  std::size_t pipeline_bytes_ = 0;
  bool core_for_each_ = true;
  bool all_joined_ = false;
  bool one_shot_reserved_ = false;
  bool pipeline_reserved_ = false;

  // Of the collective under way; touched by its thread alone.
  std::atomic<std::int64_t> sequence_{0};
  int parity_ = 0;
  Line* line_ = nullptr;
  const Call* call_ = nullptr;
  std::unique_ptr<Waiter> waiter_;

  std::vector<std::function<bool()>> drains_;

  std::atomic<bool> broken_{false};
  std::mutex reason_mutex_;
  std::string reason_;  // guarded by reason_mutex_
};

}  // namespace fvd::shm
