#include "shm/match_table.h"

#include <algorithm>
#include <utility>

#include "comm/communicator.h"

namespace fvd::shm {
namespace {

template <typename Map>
auto take_front(Map& map, typename Map::iterator entry) {
  auto front = std::move(entry->second.front());
  entry->second.pop_front();
  if (entry->second.empty()) map.erase(entry);
  return front;
}

}  // namespace

std::optional<Arrived> MatchTable::take_message(int source, int tag) {
  const bool any = source == Communicator::kAnySource;
  auto oldest = arrived_.end();
  for (int from = any ? 0 : source; from < (any ? ranks_ : source + 1); ++from) {
    const auto entry = arrived_.find({from, tag});
    if (entry == arrived_.end()) continue;
    if (oldest == arrived_.end() || entry->second.front().order < oldest->second.front().order) {
      oldest = entry;
    }
  }
  if (oldest == arrived_.end()) return std::nullopt;
  return take_front(arrived_, oldest);
}

void MatchTable::keep(Arrived message) {
  message.order = next_order_++;
  arrived_[{message.source, message.tag}].push_back(std::move(message));
}

std::shared_ptr<Receiving> MatchTable::take_receive(int source, int tag) {
  const auto from_it = posted_.find({source, tag});
  const auto from_any = posted_.find({Communicator::kAnySource, tag});
  if (from_it == posted_.end() && from_any == posted_.end()) return nullptr;
  if (from_any == posted_.end()) return take_front(posted_, from_it);
  if (from_it == posted_.end()) return take_front(posted_, from_any);
  const bool it_first = from_it->second.front()->order < from_any->second.front()->order;
  return take_front(posted_, it_first ? from_it : from_any);
}

void MatchTable::post(std::shared_ptr<Receiving> receiving) {
  receiving->order = next_order_++;
  posted_[{receiving->peer, receiving->tag}].push_back(std::move(receiving));
}

void MatchTable::withdraw(const Receiving& receiving) {
  const auto entry = posted_.find({receiving.peer, receiving.tag});
  if (entry == posted_.end()) return;
  std::erase_if(entry->second, [&](const auto& posted) { return posted.get() == &receiving; });
  if (entry->second.empty()) posted_.erase(entry);
}

void MatchTable::clear() {
  arrived_.clear();
  posted_.clear();
}

}  // namespace fvd::shm
