// The second way between the ranks of a CUDA group: a group of the CPU over the same ranks, through
// which they meet, compare calls, and hear of each other's aborts and deaths. No tensor goes here.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "comm/communicator.h"
#include "nccl/context.h"
#include "nccl/wire.h"

namespace fvd::nccl {

/// Threads: check_before, check_lengths and barrier as collectives of a Communicator; the methods
/// of the watchdog from one thread; the others from any.
class Control {
 public:
  /// A rank that has left may have done its part of what is still under way here.
  static constexpr milliseconds kGrace{500};

  /// What of its messages is what, by tag.
  enum Tag : int { kRecords, kLaneId, kTransfer };

  Control(std::unique_ptr<Communicator> group, const Context& context);
  ~Control();

  Communicator& group() noexcept { return *group_; }

  /// Every rank's `mine`, in the order of the ranks. Waits for all.
  template <typename T>
  std::vector<T> exchange(const T& mine, const Call& call);

  /// Waits until all ranks have come with the same record.
  /// @throws Error(kMismatch) on all ranks, naming who calls what, and what the group throws
  void check_before(const Record& record, const Call& call);

  /// Of all ranks, which each of them has. @throws Error(kMismatch) likewise, unless all are equal
  void check_same(const std::vector<Record>& records) const;

  /// Compares what each pair of ranks wants to exchange. @throws Error(kMismatch)
  void check_lengths(const std::vector<std::uint64_t>& sent,
                     const std::vector<std::uint64_t>& expected, const Call& call);

  /// Waits until all ranks have come.
  void barrier(const Call& call);

  /// Lets this rank's neighbour compare `record` while the call runs.
  void note(const Record& record);

  /// For the watchdog, again and again. Sends what was noted, compares what has come.
  /// @throws Error(kMismatch), and of its own kind what another rank gave up for
  void look();

  /// Instead of look(), at the end: what was noted goes out before this rank does.
  void leave() noexcept;

  /// Why `member` will do no more; nothing if it is there.
  std::optional<Error> gone(int member) const;

  /// While NCCL connects. @throws Error what another rank gave up for, with its kind, or kPeerLost
  ///         if one has gone: after kGrace, as it may have done its part before. For one thread.
  void check_everybody();

  /// Breaks the group for all ranks, which learn the kind too.
  void abort(Kind kind, const std::string& reason) noexcept;

 private:
  // As many calls as fit into one short message, and messages for one look: a caller makes fewer.
  static constexpr std::size_t kBatch = 16;
  static constexpr int kBatches = 256;
  struct Batch {
    std::uint64_t count = 0;
    Record records[kBatch] = {};
  };

  /// `call` as the CPU's group takes it.
  Call on_host(Call call) const;
  void gather(const ConstBlock& mine, const std::vector<Block>& all, const Call& call);
  void check_group() const;
  bool send_records();
  void receive_records();
  bool receive_batch();
  void compare_records();
  int left() const { return (context_.rank + context_.size - 1) % context_.size; }
  int right() const { return (context_.rank + 1) % context_.size; }

  const Context& context_;
  const std::unique_ptr<Communicator> group_;

  std::mutex mutex_;  // guards the next two
  std::deque<Record> to_send_;
  std::deque<Record> to_compare_;  // own calls the left neighbour has not told of yet

  // The watchdog's.
  Batch outgoing_, incoming_;
  std::unique_ptr<Transfer> sending_, receiving_;
  std::deque<Record> ahead_;                 // the neighbour's calls that this rank has not come to
  std::optional<Clock::time_point> missed_;  // when check_everybody() first saw that one had gone
};

template <typename T>
std::vector<T> Control::exchange(const T& mine, const Call& call) {
  std::vector<T> all(static_cast<std::size_t>(context_.size));
  std::vector<Block> blocks;
  for (T& one : all) blocks.push_back(contiguous_block(static_cast<void*>(&one), sizeof(T)));
  gather(contiguous_block(static_cast<const void*>(&mine), sizeof(T)), blocks, call);
  return all;
}

}  // namespace fvd::nccl
