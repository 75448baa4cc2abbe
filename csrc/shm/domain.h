// Everything of a process that its groups share: its two segments, the mappings of its peers and
// the watcher of their deaths. A group is light: it takes a slot here.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "comm/options.h"
#include "comm/store.h"
#include "shm/peer.h"
#include "shm/segment.h"
#include "shm/wait.h"
#include "shm/watcher.h"

namespace fvd::shm {

class Domain;

/// How long joining may take, and what may end it sooner. Used by the joining thread.
struct JoinLimits {
  // Half of the 100 ms a death may stay unnoticed: without pidfds that is how often is looked.
  static constexpr std::chrono::milliseconds kSlice{50};

  Clock::time_point deadline;
  std::function<void()> look_around;  // throws if there is no use in waiting any longer
  Clock::time_point next_look = Clock::now() + kSlice;

  /// To be called while waiting: looks around every 50 ms.
  void look() {
    const auto now = Clock::now();
    if (now < next_look) return;
    next_look = now + kSlice;
    look_around();
  }

  /// Milliseconds of the next wait: the rest of the time, but at most a slice.
  int slice(std::chrono::milliseconds most = kSlice) const {
    const auto left = deadline - Clock::now();
    const auto whole = std::chrono::duration_cast<std::chrono::milliseconds>(left);
    return static_cast<int>(std::clamp(whole, std::chrono::milliseconds{0}, most).count());
  }
};

/// How segments change hands: over a socket between processes, through a map between threads.
class Connector {
 public:
  virtual ~Connector() = default;
  virtual SegmentKind segment_kind() const = 0;

  /// Connects `mine` with every rank in `ranks` (of `infos`, one per rank of the group); both sides
  /// call it for each other. Returns one peer per entry of `ranks`. Only here are sockets open.
  /// @throws Error(kTimeout, kPeerLost, kSystem) naming the rank
  virtual std::vector<std::shared_ptr<Peer>> connect(Domain& mine, Store& store,
                                                     const std::string& key_prefix, int rank,
                                                     const std::vector<PeerInfo>& infos,
                                                     const std::vector<int>& ranks,
                                                     JoinLimits& limits) = 0;

  /// After a joining that failed: removes what a rank that died during it may have left.
  virtual void sweep() = 0;
};

std::unique_ptr<Connector> make_socket_connector(std::string directory);

/// Thread-safe. One per process; several in tests whose ranks are threads.
class Domain {
 public:
  /// @throws Error(kSystem) if the memory cannot be had
  Domain(const DomainOptions& options, std::unique_ptr<Connector> connector);
  ~Domain();

  /// A slot with its words at zero and in state kJoining. @throws Error(kSystem) if all are taken.
  std::size_t take_slot();

  /// Gives a slot back once nobody reads it any more: `drained` is asked now and whenever slots are
  /// taken, on any thread, under the domain's lock.
  void return_slot(std::size_t slot, std::function<bool()> drained);

  /// Makes staging memory of a slot safe to write. Costs nothing the second time.
  /// @throws Error(kSystem) with the numbers.
  enum class Staging { kOneShot, kPipeline };
  void reserve(std::size_t slot, Staging part);

  /// The same for the pages around a part of a slot's outbox; for whoever knows which are reserved.
  void reserve_outbox(std::size_t slot, std::size_t offset, std::size_t bytes);

  /// The peers of a group, one per rank, in order; new ones are connected first. infos[rank] is
  /// ours.
  std::vector<std::shared_ptr<Peer>> peers_of(Store& store, const std::string& key_prefix, int rank,
                                              const std::vector<PeerInfo>& infos,
                                              JoinLimits& limits);

  /// See Connector::sweep.
  void sweep() { connector_->sweep(); }

  /// What a joining rank publishes about this domain; slot, rank, size and nonce are the caller's
  /// to set.
  PeerInfo describe();

  const std::shared_ptr<Peer>& self() const noexcept { return self_; }
  Slot* slot(std::size_t index) noexcept;
  std::byte* data() noexcept { return self_->data_segment.data(); }
  const DomainOptions& options() const noexcept { return options_; }
  const Layout& layout() const noexcept { return layout_; }

  /// Whether every rank of the largest group so far can have a core of its own.
  bool core_for_each(std::size_t ranks);

  /// False in a forked child, where the memory is gone and nothing of the domain may be touched.
  bool usable() const noexcept { return *alive_ != 0; }

 private:
  void wake_own_threads() noexcept;
  std::shared_ptr<Peer> known(const PeerInfo& info);
  void collect_drained();

  DomainOptions options_;
  Layout layout_;
  std::unique_ptr<Connector> connector_;
  std::shared_ptr<Peer> self_;
  const int cores_;
  // One page the kernel hands to a forked child as zeroes (MADV_WIPEONFORK): the cheapest way to
  // know.
  volatile unsigned char* alive_ = nullptr;

  std::mutex mutex_;
  struct Returned {
    std::size_t slot;
    std::function<bool()> drained;
  };
  std::size_t ranks_seen_ = 1;     // guarded by mutex_, as all below
  std::size_t untouched_ = 0;      // slots from here on were never used
  std::vector<std::size_t> free_;  // used before; oldest first
  std::vector<Returned> draining_;
  std::vector<unsigned char> reserved_;  // per slot, a bit per Staging
  std::map<DomainId, std::shared_ptr<Peer>> peers_;
  std::unique_ptr<Watcher> watcher_;  // last: its thread uses the members above
};

}  // namespace fvd::shm
