// Ranks as threads of one process over one mapping: the world in which ThreadSanitizer sees every
// race between ranks. Each rank has a domain of its own; segments are process-local and found
// through a map.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "comm/error.h"
#include "comm/options.h"
#include "shm/domain.h"
#include "shm/shm_communicator.h"

namespace fvd::test {

/// Which domains exist in this test, and the peers made of them (to let one of them die).
class LocalNetwork {
 public:
  void add(const std::shared_ptr<shm::Domain>& domain) {
    std::lock_guard lock(mutex_);
    selves_[domain->self()->info.domain] = domain->self();
  }

  std::shared_ptr<shm::Peer> find(const shm::PeerInfo& info) {
    std::lock_guard lock(mutex_);
    const auto found = selves_.find(info.domain);
    FVD_CHECK(found != selves_.end(), kSystem, "no such domain in this test");
    auto peer = std::make_shared<shm::Peer>();
    peer->info = found->second->info;
    peer->info.pid = 0;  // not a process: nothing to watch
    peer->data = found->second->data;
    peer->control = found->second->control;
    peer->keep_mapped = found->second;
    peers_[info.domain].push_back(peer);
    return peer;
  }

  /// As the watcher does when a process ends: everybody who has mapped the domain learns it.
  void kill(const shm::Domain& domain) {
    std::lock_guard lock(mutex_);
    for (const auto& peer : peers_[domain.self()->info.domain]) {
      peer->last_words = "killed by the test";
      peer->dead.store(true);
    }
  }

 private:
  std::mutex mutex_;
  std::map<shm::DomainId, std::shared_ptr<shm::Peer>> selves_;
  std::map<shm::DomainId, std::vector<std::shared_ptr<shm::Peer>>> peers_;
};

class LocalConnector : public shm::Connector {
 public:
  explicit LocalConnector(std::shared_ptr<LocalNetwork> network) : network_(std::move(network)) {}

  shm::SegmentKind segment_kind() const override { return shm::SegmentKind::kProcessLocal; }

  std::vector<std::shared_ptr<shm::Peer>> connect(shm::Domain&, Store&, const std::string&, int,
                                                  const std::vector<shm::PeerInfo>& infos,
                                                  const std::vector<int>& ranks,
                                                  shm::JoinLimits&) override {
    std::vector<std::shared_ptr<shm::Peer>> peers;
    for (int rank : ranks) peers.push_back(network_->find(infos[static_cast<std::size_t>(rank)]));
    return peers;
  }

  void sweep() override {}

 private:
  std::shared_ptr<LocalNetwork> network_;
};

/// Small enough for hundreds of tests; the pipeline turns over after a few kilobytes.
inline DomainOptions small_domain() {
  DomainOptions options;
  options.slots = 16;
  options.staging_bytes = 68 << 10;  // the least a domain takes, in pages
  options.one_shot_bytes = 4 << 10;
  return options;
}

/// `size` ranks with a domain each. communicator(rank, ...) is to be called by all ranks, each in
/// its thread.
class ThreadWorld {
 public:
  explicit ThreadWorld(int size, const DomainOptions& options = small_domain())
      : network_(std::make_shared<LocalNetwork>()) {
    for (int r = 0; r < size; ++r) {
      domains_.push_back(
          std::make_shared<shm::Domain>(options, std::make_unique<LocalConnector>(network_)));
      network_->add(domains_.back());
    }
  }

  int size() const { return static_cast<int>(domains_.size()); }
  const std::shared_ptr<shm::Domain>& domain(int rank) const {
    return domains_[static_cast<std::size_t>(rank)];
  }
  void kill(int rank) { network_->kill(*domain(rank)); }

  std::unique_ptr<Communicator> communicator(Store& store, int rank, const GroupOptions& options) {
    return shm::make_communicator(domain(rank), store, rank, size(), options);
  }

 private:
  std::shared_ptr<LocalNetwork> network_;
  std::vector<std::shared_ptr<shm::Domain>> domains_;
};

}  // namespace fvd::test
