// ShmCommunicator enters the contract suite: ranks as threads over one mapping (what
// ThreadSanitizer sees) and as forked processes that meet over sockets (what users have).
#include <gtest/gtest.h>

#include "contract/communicator_contract.h"
#include "support/file_store.h"
#include "support/memory_store.h"
#include "support/shm_world.h"

namespace fvd::test {
namespace {

std::vector<Outcome> run_as_threads(int size, const GroupOptions& options,
                                    const ContractWorld::Body& body) {
  ThreadWorld world(size);
  MemoryStore store;
  return run_threads(size, [&](int rank) { body(*world.communicator(store, rank, options)); });
}

std::vector<Outcome> run_as_forks(int size, const GroupOptions& options,
                                  const ContractWorld::Body& body) {
  const TemporaryDirectory directory;
  return run_forks(size, [&](int rank) {
    DomainOptions domain = small_domain();
    domain.socket_directory = directory.path().string();
    FileStore store(directory.path());
    body(*shm::make_communicator(shm::make_domain(domain), store, rank, size, options));
  });
}

std::vector<ContractWorld> worlds() {
  std::vector<ContractWorld> worlds;
  for (int size : {1, 2, 3, 4, 7}) {
    const DomainOptions domain = small_domain();
    ContractWorld world;
    world.size = size;
    world.one_shot_bytes = domain.one_shot_bytes;
    world.staging_bytes = domain.staging_bytes;
    world.name = "threads";
    world.run = run_as_threads;
    worlds.push_back(world);
    world.name = "forks";
    world.run = run_as_forks;
    worlds.push_back(world);
  }
  return worlds;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Shm, CommunicatorContract, ::testing::ValuesIn(worlds()),
                         [](const auto& info) {
                           return info.param.name + "_" + std::to_string(info.param.size);
                         });

}  // namespace fvd::test
