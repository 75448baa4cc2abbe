#include "shm/domain.h"

#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>

#include "comm/error.h"
#include "shm/process.h"

namespace fvd::shm {
namespace {

// Slots are reserved in batches: a system call for every group would show in its 5 ms.
constexpr std::size_t kSlotsPerReserve = 64;

std::size_t to_pages(std::size_t bytes) {
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

DomainId random_id() {
  DomainId id{};
  FVD_SYS_CHECK(getrandom(id.data(), sizeof(id), 0) == sizeof(id) ? 0 : -1, "getrandom");
  return id;
}

volatile unsigned char* page_wiped_on_fork() {
  void* page =
      mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  FVD_SYS_CHECK(page == MAP_FAILED ? -1 : 0, "mapping a page");
  madvise(page, kPageBytes, MADV_WIPEONFORK);
  *static_cast<unsigned char*>(page) = 1;
  return static_cast<volatile unsigned char*>(page);
}

}  // namespace

Domain::Domain(const DomainOptions& options, std::unique_ptr<Connector> connector)
    : options_(options),
      layout_{options.slots, to_pages(options.staging_bytes)},
      connector_(std::move(connector)),
      self_(std::make_shared<Peer>()),
      cores_(usable_cores()),
      reserved_(options.slots) {
  FVD_CHECK(layout_.valid() && options_.one_shot_bytes <= Layout::kOneShotBytes, kInvalidArgument,
            "shared memory for ", options_.slots, " slots with ", options_.staging_bytes,
            " bytes of staging and one-shot messages of ", options_.one_shot_bytes,
            " bytes; allowed are 1 to ", Layout::kMostSlots, " slots, ",
            Layout::kLeastPipelineBytes, " to ", Layout::kMostPipelineBytes, " bytes and at most ",
            Layout::kOneShotBytes, " bytes");
  const SegmentKind kind = connector_->segment_kind();
  Peer& self = *self_;
  self.data_segment = Segment::create("fastvideo_dist-data", layout_.data_bytes(), kind);
  self.control_segment = Segment::create("fastvideo_dist-bells", layout_.control_bytes(), kind);
  self.control_segment.reserve(0, layout_.control_bytes());
  // After these seals no other process can map the data writable: single writer, by the kernel's
  // word.
  self.data_segment.seal(true);
  self.control_segment.seal(false);
  self.data = self.data_segment.data();
  self.control = self.control_segment.data();
  self.info.boot_id = boot_id();
  self.info.pid_namespace = pid_namespace();
  self.info.uid = geteuid();
  self.info.pid = static_cast<std::uint64_t>(getpid());
  self.info.start_time = start_time(getpid());
  self.info.domain = random_id();
  self.info.slots = layout_.slots;
  self.info.pipeline_bytes = layout_.pipeline_bytes;
  self.info.one_shot_bytes = options_.one_shot_bytes;
  alive_ = page_wiped_on_fork();
  watcher_ = std::make_unique<Watcher>([this] { wake_own_threads(); });
}

Domain::~Domain() {
  if (!usable()) watcher_->forget_thread();
  watcher_.reset();
  munmap(const_cast<unsigned char*>(alive_), kPageBytes);
}

Slot* Domain::slot(std::size_t index) noexcept {
  return reinterpret_cast<Slot*>(data() + layout_.slot_offset(index));
}

std::size_t Domain::take_slot() {
  std::lock_guard lock(mutex_);
  collect_drained();
  std::size_t index = 0;
  // Used slots rest as long as there are fresh ones: a straggler that still looks at one sees that
  // its owner left rather than somebody else's group.
  if (untouched_ < layout_.slots) {
    if (untouched_ % kSlotsPerReserve == 0) {
      const std::size_t count = std::min(kSlotsPerReserve, layout_.slots - untouched_);
      const std::size_t begin = layout_.slot_offset(untouched_) / kPageBytes * kPageBytes;
      const std::size_t end = to_pages(layout_.slot_offset(untouched_ + count));
      self_->data_segment.reserve(begin, end - begin);
    }
    index = untouched_++;
  } else {
    FVD_CHECK(!free_.empty(), kSystem, "all ", layout_.slots,
              " group slots of this process are in use; destroy groups, or set "
              "FASTVIDEO_DIST_SLOTS higher");
    index = free_.front();
    free_.erase(free_.begin());
  }
  Slot& words = *slot(index);
  words.state.code.store(State::kFree, std::memory_order_seq_cst);
  for (Line& line : words.lines) line.sequence.store(0, std::memory_order_relaxed);
  words.progress.staged.store(0, std::memory_order_relaxed);
  words.progress.reduced.store(0, std::memory_order_relaxed);
  words.progress.consumed.store(0, std::memory_order_relaxed);
  words.progress.completed.store(0, std::memory_order_relaxed);
  // Closed before anything in it changes: who still looks at the outbox sees that it is not the one
  // he knows (Mailbox::refresh).
  words.state.outbox.store(0, std::memory_order_seq_cst);
  words.state.epoch.store(0, std::memory_order_relaxed);
  words.state.code.store(State::kJoining, std::memory_order_seq_cst);
  return index;
}

void Domain::return_slot(std::size_t slot, std::function<bool()> drained) {
  std::lock_guard lock(mutex_);
  draining_.push_back({slot, std::move(drained)});
  collect_drained();
}

void Domain::collect_drained() {
  std::erase_if(draining_, [&](const Returned& returned) {
    if (!returned.drained()) return false;
    free_.push_back(returned.slot);
    return true;
  });
}

void Domain::reserve(std::size_t slot, Staging part) {
  std::size_t offset = 0;
  std::size_t bytes = 0;
  switch (part) {
    case Staging::kOneShot:
      offset = layout_.one_shot_offset(slot, 0);
      bytes = 2 * Layout::kOneShotBytes;
      break;
    case Staging::kPipeline:
      offset = layout_.pipeline_offset(slot);
      bytes = layout_.pipeline_bytes;
      break;
  }
  std::lock_guard lock(mutex_);
  const auto bit = static_cast<unsigned char>(1U << static_cast<unsigned>(part));
  if ((reserved_[slot] & bit) != 0) return;
  self_->data_segment.reserve(offset, bytes);
  reserved_[slot] |= bit;
}

void Domain::reserve_outbox(std::size_t slot, std::size_t offset, std::size_t bytes) {
  const std::size_t begin = (layout_.outbox_offset(slot) + offset) / kPageBytes * kPageBytes;
  const std::size_t end = to_pages(layout_.outbox_offset(slot) + offset + bytes);
  self_->data_segment.reserve(begin, end - begin);
}

bool Domain::core_for_each(std::size_t ranks) {
  std::lock_guard lock(mutex_);
  ranks_seen_ = std::max({ranks_seen_, ranks, peers_.size() + 1});
  return ranks_seen_ <= static_cast<std::size_t>(cores_);
}

PeerInfo Domain::describe() {
  std::lock_guard lock(mutex_);
  // Peers that are dead and in no group any more are let go here, where new ones are about to come.
  std::erase_if(peers_, [](const auto& entry) {
    return entry.second->dead.load() && entry.second.use_count() == 1;
  });
  PeerInfo info = self_->info;
  for (const auto& [id, peer] : peers_) {
    if (!peer->dead.load()) info.connected.push_back(id);
  }
  return info;
}

std::shared_ptr<Peer> Domain::known(const PeerInfo& info) {
  std::lock_guard lock(mutex_);
  const auto found = peers_.find(info.domain);
  if (found == peers_.end() || found->second->dead.load()) return nullptr;
  // Both sides must have kept the connection: an attempt that failed half way is made again by
  // both.
  const bool mutual = std::find(info.connected.begin(), info.connected.end(), self_->info.domain) !=
                      info.connected.end();
  return mutual ? found->second : nullptr;
}

std::vector<std::shared_ptr<Peer>> Domain::peers_of(Store& store, const std::string& key_prefix,
                                                    int rank, const std::vector<PeerInfo>& infos,
                                                    JoinLimits& limits) {
  std::vector<std::shared_ptr<Peer>> peers(infos.size());
  std::vector<int> strangers;
  // What we published at the start of this joining decides, so that both sides decide the same.
  const auto& published = infos[static_cast<std::size_t>(rank)].connected;
  for (std::size_t r = 0; r < infos.size(); ++r) {
    if (static_cast<int>(r) == rank) {
      peers[r] = self_;
      continue;
    }
    const bool was_connected =
        std::find(published.begin(), published.end(), infos[r].domain) != published.end();
    if (was_connected) peers[r] = known(infos[r]);
    if (peers[r] == nullptr) strangers.push_back(static_cast<int>(r));
  }
  if (strangers.empty()) return peers;
  auto made = connector_->connect(*this, store, key_prefix, rank, infos, strangers, limits);
  for (std::size_t i = 0; i < strangers.size(); ++i) {
    peers[static_cast<std::size_t>(strangers[i])] = made[i];
    if (made[i]->info.pid != 0) watcher_->watch(made[i]);
    std::lock_guard lock(mutex_);
    peers_[made[i]->info.domain] = made[i];
  }
  return peers;
}

void Domain::wake_own_threads() noexcept {
  for (std::size_t i = 0; i < layout_.slots; ++i) {
    Bells& bells = *self_->bells(i);
    ring(bells.collective);
    ring(bells.transfer);
  }
}

}  // namespace fvd::shm
