// How a rank joins a group: what everybody publishes, what is checked, and the last word before the
// first collective. Two rounds over the store; sockets only between processes that meet for the
// first time.
#include <sys/random.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <string_view>

#include "shm/fingerprint.h"
#include "shm/group.h"

namespace fvd::shm {
namespace {

std::uint64_t random_nonce() {
  std::uint64_t nonce = 0;
  const auto bytes = getrandom(&nonce, sizeof(nonce), 0);
  FVD_SYS_CHECK(bytes == sizeof(nonce) ? 0 : -1, "getrandom");
  return nonce | 1;
}

// Waiting for all ranks to come, so often is looked whether one has given up.
constexpr std::chrono::milliseconds kRetell{250};

std::string info_key(const std::string& prefix, int rank) {
  return prefix + "info/" + std::to_string(rank);
}

[[noreturn]] void throw_not_come(Store& store, const std::vector<std::string>& keys,
                                 const std::string& where, std::chrono::milliseconds timeout) {
  std::string absent;
  for (std::size_t r = 0; r < keys.size(); ++r) {
    if (!store.has(keys[r])) absent += " " + std::to_string(r);
  }
  throw Error(Kind::kTimeout, text("fastvideo: joining ", where, ": after ", timeout.count(),
                                   " ms these ranks had not come:", absent));
}

/// Everybody's, once all have published. @throws kTimeout naming the ranks that did not come.
std::vector<PeerInfo> gather_infos(Store& store, const std::string& prefix, int size,
                                   const std::string& where, std::chrono::milliseconds timeout,
                                   JoinLimits& limits) {
  std::vector<std::string> keys;
  for (int r = 0; r < size; ++r) keys.push_back(info_key(prefix, r));
  std::vector<std::string> values;
  while (values.empty()) {
    try {
      values = store.wait_for(keys, std::chrono::milliseconds(limits.slice(kRetell)));
    } catch (const Error& error) {
      if (error.kind() != Kind::kTimeout) throw;
      limits.look();
      if (Clock::now() >= limits.deadline) throw_not_come(store, keys, where, timeout);
    }
  }
  std::vector<PeerInfo> infos;
  for (int r = 0; r < size; ++r) {
    infos.push_back(PeerInfo::parse(values[static_cast<std::size_t>(r)], r));
  }
  return infos;
}

void check_infos(const std::vector<PeerInfo>& infos, int rank, const std::string& where) {
  const PeerInfo& own = infos[static_cast<std::size_t>(rank)];
  std::set<DomainId> domains;
  for (std::size_t r = 0; r < infos.size(); ++r) {
    const PeerInfo& info = infos[r];
    FVD_CHECK(info.boot_id == own.boot_id, kUnsupported, "fastvideo: joining ", where, ": rank ", r,
              " runs on another host than rank ", rank,
              "; CPU groups across hosts are not supported yet, use backend \"gloo\" for them");
    FVD_CHECK(info.pid_namespace == own.pid_namespace, kUnsupported, "fastvideo: joining ", where,
              ": rank ", r, " runs in another PID namespace (container) than rank ", rank,
              ", so neither could notice the other's death; share it (docker run --pid)");
    FVD_CHECK(info.uid == own.uid, kUnsupported, "fastvideo: joining ", where, ": rank ", r,
              " belongs to user ", info.uid, ", rank ", rank, " to user ", own.uid);
    FVD_CHECK(info.rank == r && info.size == infos.size(), kMismatch, "fastvideo: joining ", where,
              ": who came as rank ", r, " believes to be rank ", info.rank, " of ", info.size);
    FVD_CHECK(domains.insert(info.domain).second, kMismatch, "fastvideo: joining ", where,
              ": rank ", r, " (pid ", info.pid,
              ") is in the group twice; every rank has to be a process of its own");
  }
}

/// What a rank that gives up says to those it shares no memory with yet; the first word stays. An
/// entry that nobody reads again: the next joining has other keys.
void tell_others(Store& store, const std::string& key, Kind kind, const std::string& reason) {
  try {
    if (store.has(key)) return;
    store.set(key, std::to_string(static_cast<int>(kind)) + " " + reason.substr(0, 2000));
  } catch (const Error&) {  // without the store they have their deadline
  }
}

/// Throws what a rank that gave up has said, if one has.
void listen_to_others(Store& store, const std::string& key, const std::string& where) {
  std::string word;
  try {
    if (store.has(key)) word = store.wait_for({key}, std::chrono::seconds(1)).at(0);
  } catch (const Error&) {  // a store that went with a rank which is through says nothing
  }
  if (word.empty()) return;
  // From outside: the kind is one of ours or kAborted, the rest is text.
  const int number = std::atoi(word.c_str());
  const bool ours = number >= 0 && number <= static_cast<int>(Kind::kLibrary);
  const std::string reason = word.substr(std::min(word.find(' '), word.size() - 1) + 1);
  throw RelayedError(ours ? static_cast<Kind>(number) : Kind::kAborted,
                     text("fastvideo: joining ", where, ": ", reason), reason);
}

std::uint64_t epoch_of(const std::vector<PeerInfo>& infos) {
  std::uint64_t epoch = infos.size();
  for (const PeerInfo& info : infos) epoch = mix(epoch, info.nonce);
  return epoch | 1;  // 0 means: not known yet
}

}  // namespace

std::unique_ptr<Group> Group::join(std::shared_ptr<Domain> domain, Store& store, int rank, int size,
                                   const GroupOptions& options) {
  FVD_CHECK(size >= 1 && rank >= 0 && rank < size, kInvalidArgument, "rank ", rank,
            " of a group of ", size);
  FVD_CHECK(static_cast<std::size_t>(size) <= kMaxRanks, kUnsupported, "a group of ", size,
            " ranks on one host; at most ", kMaxRanks, " are supported");
  FVD_CHECK(domain->usable(), kAborted, "a forked child cannot join the group \"", options.name,
            "\" with its parent's memory; start ranks with spawn");
  std::unique_ptr<Group> group(new Group(std::move(domain), rank, options));
  try {
    group->meet(store, size);
  } catch (const Error& error) {
    group->break_with(error);
    group->domain_->sweep();
    throw;
  } catch (...) {  // Ctrl-C, or no memory: the others need not wait for this rank
    group->break_with(Kind::kAborted, text("rank ", rank, " gave up joining"));
    group->domain_->sweep();
    throw;
  }
  return group;
}

void Group::meet(Store& store, int size) {
  // Ranks come in step, so the number of their joinings under this name agrees; keys of an earlier
  // one on the same store are never read.
  const auto generation = store.add("shm/joinings/" + std::to_string(rank_), 1);
  const std::string prefix = "shm/" + std::to_string(generation) + "/";
  const std::string gave_up = prefix + "gave_up";
  const std::string where = text("group \"", options_.name, "\" as rank ", rank_, " of ", size);
  JoinLimits limits{Clock::now() + options_.timeout, [&] {
                      if (options_.interrupt != nullptr) (*options_.interrupt)();
                      listen_to_others(store, gave_up, where);
                    }};
  const std::string who = text("rank ", rank_, " gave up");
  try {
    meet(store, size, prefix, where, limits);
  } catch (const RelayedError&) {
    throw;
  } catch (const Error& error) {
    tell_others(store, gave_up, error.kind(), text(who, ": ", error.what()));
    if (std::string_view(error.what()).starts_with("fastvideo: ")) throw;
    throw Error(error.kind(), text("fastvideo: joining ", where, ": ", error.what()));
  } catch (...) {
    tell_others(store, gave_up, Kind::kAborted, text(who, ": it was interrupted"));
    throw;
  }
}

void Group::meet(Store& store, int size, const std::string& prefix, const std::string& where,
                 JoinLimits& limits) {
  PeerInfo own = domain_->describe();
  own.nonce = random_nonce();
  own.rank = static_cast<std::uint64_t>(rank_);
  own.size = static_cast<std::uint64_t>(size);
  own.slot = slot_index_;
  store.set(info_key(prefix, rank_), own.serialize());
  const auto infos = gather_infos(store, prefix, size, where, options_.timeout, limits);
  check_infos(infos, rank_, where);
  const auto peers = domain_->peers_of(store, prefix, rank_, infos, limits);

  one_shot_bytes_ = own.one_shot_bytes;
  pipeline_bytes_ = own.pipeline_bytes;
  members_.reserve(infos.size());
  for (std::size_t r = 0; r < infos.size(); ++r) {
    Member member;
    member.peer = peers[r];
    member.slot_index = infos[r].slot;
    member.slot = peers[r]->slot(infos[r].slot);
    member.bells = peers[r]->bells(infos[r].slot);
    member.global_rank =
        r < options_.global_ranks.size() ? options_.global_ranks[r] : static_cast<int>(r);
    members_.push_back(std::move(member));
    one_shot_bytes_ = std::min<std::size_t>(one_shot_bytes_, infos[r].one_shot_bytes);
    pipeline_bytes_ = std::min<std::size_t>(pipeline_bytes_, infos[r].pipeline_bytes);
  }
  core_for_each_ = domain_->core_for_each(infos.size());
  waiter_ = std::make_unique<Waiter>(domain_->self()->bells(slot_index_)->collective,
                                     core_for_each_, domain_->options().spin_us);
  epoch_ = epoch_of(infos);
  slot_->state.epoch.store(epoch_, std::memory_order_seq_cst);
  slot_->state.code.store(State::kActive, std::memory_order_seq_cst);
  ring_everybody();
  wait_all_active(where, limits);
  all_joined_ = true;
  // Everybody has read them: whoever is active has.
  remove_if_possible(store, info_key(prefix, rank_));
}

void Group::wait_all_active(const std::string& where, JoinLimits& limits) {
  const auto joined = [this](int rank) {
    const State& state = member(rank).slot->state;
    const auto code = state.code.load(std::memory_order_seq_cst);
    // A quick rank may have used the group, broken or left it by now; it was in all the same.
    return (code == State::kActive || code == State::kLeft || code == State::kBroken) &&
           state.epoch.load(std::memory_order_acquire) == epoch_;
  };
  for (int r = 0; r < size(); ++r) {
    const auto ready = [&] { return joined(r); };
    waiter_->wait(ready, [&] {
      // Not `r` alone: who is waited for may be late, and another one dead meanwhile.
      for (int other = 0; other < size(); ++other) {
        if (other == rank_) continue;
        check_rank(other, [&] { return joined(other); }, "joining " + where);
      }
      limits.look();
      FVD_CHECK(Clock::now() < limits.deadline, kTimeout, "fastvideo: joining ", where, ": ",
                describe_member(r), " did not finish joining in ", options_.timeout.count(), " ms");
      return limits.deadline - Clock::now();
    });
  }
}

}  // namespace fvd::shm
