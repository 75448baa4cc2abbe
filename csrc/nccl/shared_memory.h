// Device memory that ranks of other processes write into: what is told of it, and who has opened
// what.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "nccl/context.h"

namespace fvd::nccl {

/// A piece of memory, as its owner tells the other ranks of it. Plain memory.
struct Shared {
  IpcHandle handle{};        // of the allocation it lies in
  std::uint64_t base = 0;    // where that begins, for its owner
  std::uint64_t size = 0;    // of the allocation
  std::uint64_t offset = 0;  // of the piece, from there
};

/// Finds the allocations of this rank's memory. One thread at a time.
class Exporter {
 public:
  explicit Exporter(const CudaApi& cuda) : cuda_(cuda) {}

  /// The device is the current one. @throws Error(kUnsupported) why others cannot open it
  Shared of(const void* data);

 private:
  struct Known {
    std::uint64_t id = 0;  // of the allocation: its address may come again for another one
    IpcHandle handle{};
  };

  const CudaApi& cuda_;
  PointerAttributes attributes_ = nullptr;  // found when first needed
  std::map<std::uint64_t, Known> known_;    // by base: to ask for a handle takes longer
};

/// Closes what was opened by a handle. What fails there cannot be mended by anybody.
void close_handle(const CudaApi& cuda, void* data) noexcept;

/// The allocations that ranks have told of, and where this one has opened them. Every rank does the
/// same with what all have told, so each knows what another has. One thread at a time.
///
/// What is open keeps its memory from being used again after its owner has freed it, so what its
/// owner has replaced is closed at once, and what no call has used for kIdleCalls later; of each
/// rank no more than kMost allocations stay open.
class Mappings {
 public:
  static constexpr std::size_t kMost = 64;
  static constexpr std::uint64_t kIdleCalls = 256;

  /// Why an allocation cannot be used; empty if it can. `passing`: it may work another time.
  struct Refusal {
    std::string why;
    bool passing = false;
  };

  explicit Mappings(const Context& context) : context_(context) {}

  bool knows(int rank, const Shared& piece) const;

  void begin_call() { ++call_; }
  /// The call uses it: nothing that it opens takes its place. Before anything is opened.
  void touch(int rank, const Shared& piece);
  /// After all have been touched: gives up what has not been for long.
  void drop_idle();

  /// Opens what was not known, and gives up what it replaces. What cannot be opened is noted, too.
  /// The device is the current one.
  Refusal open(int rank, const Shared& piece);

  /// All that was opened in this call cannot be used: some rank could not open something.
  void refuse_new(const Refusal& refusal);

  /// Where this rank finds it; null if it was refused, which `why` tells then.
  std::byte* find(int rank, const Shared& piece, std::string& why);

  /// What was given up since this was last asked: to be closed when no copy to it is under way.
  std::vector<void*> take_given_up() noexcept { return std::exchange(given_up_, {}); }
  bool any_given_up() const noexcept { return !given_up_.empty(); }

  /// Gives up all there is.
  void give_up_all();

 private:
  struct Mapping {
    IpcHandle handle;
    std::uint64_t base, size;
    void* data = nullptr;        // null for who could not open it
    std::string refused;         // why nobody may use it
    std::uint64_t opened, used;  // calls
  };
  std::vector<Mapping>& of(int rank) { return ranks_[rank]; }
  void give_up(int rank, const Mapping& mapping);
  void close(int rank, const Mapping& mapping);
  void make_room(int rank, const Shared& piece);

  const Context& context_;
  std::map<int, std::vector<Mapping>> ranks_;
  std::vector<void*> given_up_;  // opened, and no longer known
  std::uint64_t call_ = 0;
};

}  // namespace fvd::nccl
