// The words of a group's errors: who is missing and in what state, who disagrees with whom.
#include <algorithm>
#include <iomanip>
#include <map>
#include <sstream>

#include "comm/log.h"
#include "shm/fingerprint.h"
#include "shm/group.h"
#include "shm/process.h"

namespace fvd::shm {
namespace {

constexpr char kWayOut[] = "\nGroup is now unusable; destroy_process_group() and init again.";

std::string list(const std::vector<int>& ranks) {
  std::ostringstream out;
  out << (ranks.size() == 1 ? "rank " : "ranks ");
  for (std::size_t i = 0; i < ranks.size(); ++i) out << (i == 0 ? "" : ", ") << ranks[i];
  return out.str();
}

std::string seconds(std::chrono::milliseconds time) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1) << static_cast<double>(time.count()) / 1000.0 << " s";
  return out.str();
}

}  // namespace

std::string describe(const Record& record) {
  std::ostringstream out;
  // Bytes a peer wrote may hold no enumerator of ours; name() answers that with words.
  out << name(record.op);
  const char* separator = "(";
  const auto part = [&](const auto&... parts) {
    out << separator;
    (out << ... << parts);
    separator = ", ";
  };
  if (record.has_reduce) {
    if (record.reduce == ReduceKind::kPremulSum) {
      part(name(record.reduce), " ", record.factor);
    } else {
      part(name(record.reduce));
    }
  }
  if (record.has_type && record.even) part(name(record.type), " x ", record.count);
  if (record.has_type && !record.even) part(name(record.type), ", uneven");
  if (record.root >= 0) part("root ", record.root);
  if (record.layout != 0) part("layout ", std::hex, record.layout, std::dec);
  if (separator[0] == ',') out << ")";
  return out.str();
}

std::string Group::where() const {
  return text("group \"", options_.name, "\", rank ", rank_, " of ", size());
}

std::string Group::attempt() const {
  return text(describe(line_->record), " seq ", sequence(), " on ", where());
}

std::string Group::describe_member(int rank) const {
  const Member& other = member(rank);
  if (other.global_rank != rank) {
    return text("rank ", rank, " (global rank ", other.global_rank, ", pid ", other.peer->info.pid,
                ")");
  }
  return text("rank ", rank, " (pid ", other.peer->info.pid, ")");
}

std::string Group::last_finished(int rank) const {
  const Slot& slot = *member(rank).slot;
  const std::int64_t completed = slot.progress.completed.load(std::memory_order_acquire);
  if (completed <= 0) return "last finished: nothing yet";
  const Line& line = slot.lines[completed & 1];
  if (line.sequence.load(std::memory_order_acquire) != completed) {
    return text("last finished: seq ", completed);
  }
  const Record record = line.record;
  // The rank takes this line again once it has completed the next collective: what was copied may
  // then be half of another record. Pairs with the store in finish.
  const bool whole = slot.progress.completed.load(std::memory_order_seq_cst) == completed;
  return text("last finished: ", whole ? describe(record) + " " : "", "seq ", completed);
}

std::vector<int> Group::missing_ranks() const {
  std::vector<int> missing;
  for (int r = 0; r < size(); ++r) {
    const auto announced = member(r).slot->lines[parity_].sequence.load(std::memory_order_acquire);
    if (announced != sequence()) missing.push_back(r);
  }
  return missing;
}

/// A line for each missing rank; for all others if everybody arrived but somebody does not finish.
std::string Group::list_ranks(const std::vector<int>& missing) const {
  std::ostringstream out;
  for (int r = 0; r < size(); ++r) {
    const bool absent = std::find(missing.begin(), missing.end(), r) != missing.end();
    if (r == rank_ || (!absent && !missing.empty())) continue;
    const PeerInfo& info = member(r).peer->info;
    out << "\n  " << (absent ? "missing" : "unfinished") << ": rank " << r << "  pid " << info.pid
        << "  " << describe_state(static_cast<pid_t>(info.pid), info.start_time) << "  "
        << last_finished(r);
  }
  return out.str();
}

void Group::notice_late(std::chrono::milliseconds waited) const {
  log(LogLevel::kWarning,
      text(attempt(), ": still waiting after ", seconds(waited), list_ranks(missing_ranks())));
}

void Group::throw_timeout(const std::string& attempt, const std::vector<int>& missing,
                          std::chrono::milliseconds waited) const {
  throw Error(Kind::kTimeout,
              text("fastvideo: ", attempt, " (", members_.size() - missing.size(), " of ",
                   members_.size(), " ranks arrived), waited ", seconds(waited), " of ",
                   seconds(waited), ".", list_ranks(missing), kWayOut));
}

void Group::throw_transfer_timeout(const std::string& attempt, const std::vector<int>& awaited,
                                   std::chrono::milliseconds waited) const {
  throw Error(Kind::kTimeout, text("fastvideo: ", attempt, ", waited ", seconds(waited), " of ",
                                   seconds(waited), ".", list_ranks(awaited), kWayOut));
}

void Group::throw_gone(int rank, const std::string& attempt) {
  const Member& other = member(rank);
  const bool dead = other.peer->dead.load(std::memory_order_seq_cst);
  throw Error(Kind::kPeerLost,
              text("fastvideo: ", attempt, ": ", describe_member(rank),
                   dead ? text(" is gone: ", other.peer->last_words)
                        : std::string(" has left the group (destroy_process_group)"),
                   "; ", last_finished(rank), kWayOut));
}

void Group::throw_mismatch() {
  // Who calls what, by the words of the call; ranks of one fingerprint call the same.
  std::map<std::uint64_t, std::vector<int>> callers;
  for (int r = 0; r < size(); ++r) {
    callers[member(r).slot->lines[parity_].fingerprint].push_back(r);
  }
  std::vector<std::vector<int>> parties;
  for (auto& [hash, ranks] : callers) parties.push_back(std::move(ranks));
  std::sort(parties.begin(), parties.end(), [](const auto& a, const auto& b) {
    return a.size() != b.size() ? a.size() < b.size() : a.front() > b.front();
  });
  std::ostringstream out;
  out << "fastvideo: ranks disagree on collective seq " << sequence() << " of " << where() << ": ";
  for (std::size_t p = 0; p < parties.size(); ++p) {
    const Record& record = this->record(parties[p].front());
    out << (p == 0                    ? ""
            : p + 1 == parties.size() ? ", but "
                                      : ", ")
        << list(parties[p]) << (parties[p].size() == 1 ? " calls " : " call ") << describe(record);
  }
  out << ". No output was touched." << kWayOut;
  throw Error(Kind::kMismatch, out.str());
}

}  // namespace fvd::shm
