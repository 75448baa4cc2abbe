// A Store in memory that the processes of one user and host map: ranks that share nothing but 128
// bytes meet in it. No port, no thread, no name in a file system; it is gone with its last user.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "comm/store.h"
#include "shm/process_address.h"
#include "shm/segment.h"

namespace fvd::shm {

/// As many bytes as an ncclUniqueId, so that it travels wherever one does.
struct SharedStoreAddress {
  char magic[16];
  char boot_id[40];  // zero-terminated
  std::uint64_t pid_namespace;
  std::uint64_t uid;
  std::uint64_t pid;
  std::uint64_t start_time;
  std::uint64_t fd;
  std::uint64_t id[2];  // random: tells the store from what may have its descriptor by now
  std::uint64_t unused[2];

  ProcessAddress process() const { return {boot_id, pid_namespace, uid, pid, start_time}; }
  /// "nccl-1f2e3d4c": short, and as good as unique among the stores of a process.
  std::string name() const;
  std::string serialize() const;
  /// @throws Error(kInvalidArgument) if `bytes` are no address of this version of the library.
  static SharedStoreAddress parse(const std::string& bytes);
};
static_assert(sizeof(SharedStoreAddress) == 128);

/// Thread-safe, and safe against the death of any process that uses it: one that dies inside a call
/// makes every later call of the others throw. What lies in the memory is untrusted: all lengths
/// read there are checked.
///
/// Errors: Error(kSystem) if the store is full or damaged, or a process stopped inside a call
///         (SIGSTOP) keeps it for 10 s; Error(kAborted) in a forked child, which has not inherited
///         the memory.
class SharedStore final : public Store {
 public:
  /// The creating process keeps the object until every rank has attached.
  static std::shared_ptr<SharedStore> create(SegmentKind kind = SegmentKind::kSealed);

  /// @throws Error(kInvalidArgument, kPeerLost, kSystem): see process_address.h
  static std::shared_ptr<SharedStore> attach(const SharedStoreAddress& address);

  const SharedStoreAddress& address() const noexcept { return address_; }

  void set(const std::string& key, const std::string& value) override;
  std::vector<std::string> wait_for(const std::vector<std::string>& keys,
                                    std::chrono::milliseconds timeout) override;
  bool has(const std::string& key) override;
  std::int64_t add(const std::string& key, std::int64_t amount) override;
  void remove(const std::string& key) override;

  /// For everything in it. 256 ranks that meet need less than half, and take it back.
  static constexpr std::size_t kBytes = 256 << 10;

 private:
  struct Head;
  struct Record;
  class Lock;

  SharedStore(Segment segment, const SharedStoreAddress& address);
  Head& head() const noexcept;
  Record* at(std::size_t offset) const;
  Record* find(std::string_view key) const;
  void put(std::string_view key, std::string_view value);
  void compact() const;

  Segment segment_;
  const SharedStoreAddress address_;
  const pid_t owner_;
};

}  // namespace fvd::shm
