// Ranks as threads: a ThreadWorld with a store, one thread per rank and everybody's ending.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "comm/communicator.h"
#include "support/ending.h"
#include "support/memory_store.h"
#include "support/shm_world.h"

namespace fvd::test {

/// How often a test repeats what it repeats: sanitizers slow everything down tenfold.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

inline GroupOptions group_options(
    const std::string& name = "test",
    std::chrono::milliseconds timeout = std::chrono::seconds(kSanitized ? 60 : 20)) {
  GroupOptions options;
  options.name = name;
  options.timeout = timeout;
  return options;
}

class ThreadRanks {
 public:
  explicit ThreadRanks(int size, const DomainOptions& options = small_domain())
      : world_(size, options) {}

  int size() const { return world_.size(); }
  ThreadWorld& world() { return world_; }
  MemoryStore& store() { return store_; }

  /// Runs `body(rank)` on one thread per rank.
  std::vector<Ending> run(const std::function<std::string(int)>& body) {
    std::vector<Ending> endings(static_cast<std::size_t>(size()));
    std::vector<std::thread> threads;
    for (int r = 0; r < size(); ++r) {
      threads.emplace_back(
          [&, r] { endings[static_cast<std::size_t>(r)] = ending_of([&] { return body(r); }); });
    }
    for (std::thread& thread : threads) thread.join();
    return endings;
  }

  /// As run, in a new group that everybody joins first.
  std::vector<Ending> run_group(const std::function<std::string(Communicator&)>& body,
                                const GroupOptions& options = group_options()) {
    return run([&](int rank) {
      const auto communicator = world_.communicator(store_, rank, options);
      return body(*communicator);
    });
  }

 private:
  ThreadWorld world_;
  MemoryStore store_;
};

}  // namespace fvd::test
