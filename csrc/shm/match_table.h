// Which message goes to which receive: of one source and tag, the oldest to the oldest. Knows no
// shared memory and no threads; its owner guards it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>

#include "shm/transfer_item.h"

namespace fvd::shm {

/// A message that came before its receive.
struct Arrived {
  int source = 0;
  int tag = 0;
  std::uint64_t number = 0;  // of an announced one
  std::uint64_t bytes = 0;
  DataType type = DataType::kUInt8;
  std::unique_ptr<std::byte[]> payload;  // of a whole one; null: announced
  std::uint64_t order = 0;               // set by MatchTable
};

class MatchTable {
 public:
  explicit MatchTable(int ranks) : ranks_(ranks) {}

  /// The message a receive posted now gets, taken out; none if it has to wait. `source` may be
  /// Communicator::kAnySource: then it is the one kept first, so that nobody is passed over.
  std::optional<Arrived> take_message(int source, int tag);
  void keep(Arrived message);

  /// The receive a message read now goes to, taken out; null if it has to be kept.
  std::shared_ptr<Receiving> take_receive(int source, int tag);
  void post(std::shared_ptr<Receiving> receiving);
  /// A posted receive that is given up.
  void withdraw(const Receiving& receiving);

  /// Forgets all of both.
  void clear();

 private:
  struct Key {
    int source;
    int tag;
    auto operator<=>(const Key&) const = default;
  };
  const int ranks_;
  std::uint64_t next_order_ = 0;
  // No entry is empty. A message and a receive that fit each other are never in both.
  std::map<Key, std::deque<Arrived>> arrived_;
  std::map<Key, std::deque<std::shared_ptr<Receiving>>> posted_;
};

}  // namespace fvd::shm
