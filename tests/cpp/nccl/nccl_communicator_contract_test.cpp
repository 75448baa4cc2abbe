// NcclCommunicator enters the contract suite over fakes that move data: ranks as threads, each with
// a device of its own. What a GPU would do by itself the fakes do on the threads of their streams.
#include <gtest/gtest.h>

#include "contract/communicator_contract.h"
#include "nccl/nccl_world.h"

namespace fvd::test {
namespace {

std::vector<Outcome> run_on_fakes(int size, const GroupOptions& options,
                                  const ContractWorld::Body& body, NcclCheck check) {
  NcclWorld world(size);
  return run_threads(size, [&](int rank) {
    const auto group = world.communicator(rank, options, check);
    Synchronous synchronous(*group);
    body(synchronous);
  });
}

std::vector<ContractWorld> worlds() {
  std::vector<ContractWorld> worlds;
  for (int size : {1, 2, 3}) {
    // NCCL changes its way where we cannot see it: the sizes are those of the shared memory.
    ContractWorld world;
    world.size = size;
    world.one_shot_bytes = small_domain().one_shot_bytes;
    world.staging_bytes = small_domain().staging_bytes;
    world.matches_tags = false;
    world.reduces_bits = false;
    world.name = "before";
    world.run = [](int ranks, const GroupOptions& options, const ContractWorld::Body& body) {
      return run_on_fakes(ranks, options, body, NcclCheck::kBefore);
    };
    worlds.push_back(world);
    world.name = "beside";
    world.compares_first = false;
    world.run = [](int ranks, const GroupOptions& options, const ContractWorld::Body& body) {
      return run_on_fakes(ranks, options, body, NcclCheck::kBeside);
    };
    worlds.push_back(world);
  }
  return worlds;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Nccl, CommunicatorContract, ::testing::ValuesIn(worlds()),
                         [](const auto& info) {
                           return info.param.name + "_" + std::to_string(info.param.size);
                         });

}  // namespace fvd::test
