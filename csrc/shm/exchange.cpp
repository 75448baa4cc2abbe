#include "shm/exchange.h"

#include <algorithm>
#include <vector>

#include "shm/copy.h"

namespace fvd::shm {
namespace {

// Where ranks either send or receive, receivers copy one part while the sender fills the next: a
// message of 256 KiB then takes little more than one of its two copies.
constexpr std::size_t kOneWayPart = 64 << 10;

constexpr std::size_t up_to_line(std::size_t bytes) { return (bytes + 63) / 64 * 64; }
constexpr std::size_t down_to_line(std::size_t bytes) { return bytes / 64 * 64; }

bool sends(const Exchange& exchange, int rank) {
  return exchange.sender < 0 || exchange.sender == rank;
}
bool receives(const Exchange& exchange, int rank) {
  return exchange.receiver < 0 || exchange.receiver == rank;
}
/// Nobody reads a staging area but the others that receive from its owner.
bool reads(const Exchange& exchange, int reader, int owner) {
  return reader != owner && receives(exchange, reader) && sends(exchange, owner);
}

/// Where the block for `receiver` lies in a staging area divided into pieces.
std::size_t piece_offset(const Exchange& exchange, int receiver, std::size_t piece) {
  return exchange.same_for_all ? 0 : static_cast<std::size_t>(receiver) * piece;
}

/// Blocks laid end to end, gone through once from the first byte to the last.
template <typename Byte>
class Sequence {
 public:
  explicit Sequence(std::span<const BasicBlock<Byte>> blocks) : blocks_(blocks) {}

  /// Calls body(block, offset, bytes) for what the next `bytes` bytes consist of, as far as there
  /// are any left.
  template <typename Body>
  void next(std::size_t bytes, Body body) {
    while (bytes > 0 && index_ < blocks_.size()) {
      const auto& block = blocks_[index_];
      const std::size_t piece = std::min(bytes, block.bytes() - offset_);
      if (piece > 0) body(block, offset_, piece);
      bytes -= piece;
      offset_ += piece;
      if (offset_ < block.bytes()) return;
      ++index_;
      offset_ = 0;
    }
  }

 private:
  std::span<const BasicBlock<Byte>> blocks_;
  std::size_t index_ = 0;
  std::size_t offset_ = 0;
};
using Source = Sequence<const std::byte>;
using Target = Sequence<std::byte>;

void gather_next(std::byte* to, Source& from, std::size_t bytes, CacheHint hint) {
  from.next(bytes, [&](const ConstBlock& block, std::size_t offset, std::size_t piece) {
    copy_range(to, block, offset, piece, hint);
    to += piece;
  });
}

void spread_next(Target& to, const std::byte* from, std::size_t bytes, CacheHint hint) {
  to.next(bytes, [&](const Block& block, std::size_t offset, std::size_t piece) {
    copy_range(block, offset, from, piece, hint);
    from += piece;
  });
}

/// Both have equal bytes in all. What is already where it belongs (in place) stays.
void copy_blocks(Blocks to, ConstBlocks from, CacheHint hint) {
  bool pairs = to.size() == from.size();
  for (std::size_t i = 0; pairs && i < to.size(); ++i) pairs = to[i].bytes() == from[i].bytes();
  if (pairs) {
    for (std::size_t i = 0; i < to.size(); ++i) {
      if (to[i].data != from[i].data) copy(to[i], from[i], hint);
    }
    return;
  }
  Source source(from);
  for (const Block& block : to) {
    for (std::size_t run = 0; run < block.runs; ++run) {
      gather_next(block.data + run * block.run_stride, source, block.run_bytes, CacheHint::kCached);
    }
  }
}

/// What a rank sends to itself needs no staging.
void copy_own(const Group& group, const Exchange& exchange, CacheHint hint) {
  if (exchange.send.empty() || exchange.receive.empty()) return;
  const auto rank = static_cast<std::size_t>(group.rank());
  copy_blocks(exchange.receive[rank], exchange.send[exchange.same_for_all ? 0 : rank], hint);
}

/// Whether what goes to `receiver` passes through the staging area.
bool staged(const Group& group, const Exchange& exchange, std::size_t receiver) {
  return exchange.same_for_all || static_cast<int>(receiver) != group.rank();
}

/// Everything fits the line or the one-shot area: staged before the announcement, which then is the
/// only thing to wait for.
void run_one_shot(Group& group, const Exchange& exchange, std::size_t piece) {
  const std::size_t pieces = exchange.same_for_all ? 1 : static_cast<std::size_t>(group.size());
  const bool in_line = piece * pieces <= kInlineBytes;
  if (sends(exchange, group.rank())) {
    std::byte* area = in_line ? group.inline_payload() : group.one_shot();
    for (std::size_t r = 0; r < exchange.send.size(); ++r) {
      if (!staged(group, exchange, r)) continue;
      Source source(exchange.send[r]);
      gather_next(area + piece_offset(exchange, static_cast<int>(r), piece), source, piece,
                  CacheHint::kCached);
    }
  }
  group.announce();
  group.wait_announced();
  copy_own(group, exchange, CacheHint::kCached);
  for (int step = 1; step < group.size(); ++step) {
    const int owner = (group.rank() + step) % group.size();
    if (!reads(exchange, group.rank(), owner)) continue;
    const std::byte* area = in_line ? group.inline_payload(owner) : group.one_shot(owner);
    Target target(exchange.receive[static_cast<std::size_t>(owner)]);
    spread_next(target, area + piece_offset(exchange, group.rank(), piece), piece,
                CacheHint::kCached);
  }
}

/// The area is a ring of `depth_` parts; round r goes through part r % depth_.
class Pipeline {
 public:
  Pipeline(Group& group, const Exchange& exchange) : group_(group), exchange_(exchange) {
    const std::size_t pieces = exchange.same_for_all ? 1 : static_cast<std::size_t>(group.size());
    const bool one_way = exchange.sender >= 0 || exchange.receiver >= 0;
    const std::size_t part =
        one_way ? std::min(kOneWayPart, group.pipeline_bytes() / 2) : group.pipeline_bytes() / 2;
    piece_ = std::min(down_to_line(part / pieces), up_to_line(exchange.largest));
    part_ = piece_ * pieces;
    if (exchange.largest > 0) {
      depth_ = static_cast<std::int64_t>(group.pipeline_bytes() / part_);
      rounds_ = static_cast<std::int64_t>((exchange.largest + piece_ - 1) / piece_);
    }
    std::size_t output = 0;
    for (const ConstBlocks blocks : exchange.send) sources_.emplace_back(blocks);
    for (const Blocks blocks : exchange.receive) {
      output += bytes_of(blocks);
      targets_.emplace_back(blocks);
    }
    hint_ = hint_for(output);
  }

  /// Round r + 1 is staged before round r is fetched, so that the others find it ready.
  void run() {
    if (rounds_ > 0) stage_round(0);
    copy_own(group_, exchange_, hint_);
    for (std::int64_t round = 0; round < rounds_; ++round) {
      if (round + 1 < rounds_) stage_round(round + 1);
      fetch_round(round);
    }
  }

 private:
  void stage_round(std::int64_t round) {
    if (!sends(exchange_, group_.rank())) return;
    // The part was used by round - depth_: its readers have to be done with that.
    for (int r = 0; round >= depth_ && r < group_.size(); ++r) {
      if (!reads(exchange_, r, group_.rank())) continue;
      group_.wait_for(r, &Progress::consumed, round - depth_);
    }
    std::byte* area = group_.pipeline() + part_offset(round);
    for (std::size_t r = 0; r < sources_.size(); ++r) {
      if (!staged(group_, exchange_, r)) continue;
      gather_next(area + piece_offset(exchange_, static_cast<int>(r), piece_), sources_[r], piece_,
                  CacheHint::kCached);
    }
    group_.publish(&Progress::staged, round);
  }

  void fetch_round(std::int64_t round) {
    if (!receives(exchange_, group_.rank())) return;
    for (int step = 1; step < group_.size(); ++step) {
      const int owner = (group_.rank() + step) % group_.size();
      if (!reads(exchange_, group_.rank(), owner)) continue;
      group_.wait_for(owner, &Progress::staged, round);
      const std::byte* area = group_.member(owner).pipeline() + part_offset(round);
      spread_next(targets_[static_cast<std::size_t>(owner)],
                  area + piece_offset(exchange_, group_.rank(), piece_), piece_, hint_);
    }
    group_.publish(&Progress::consumed, round);
  }

  std::size_t part_offset(std::int64_t round) const {
    return static_cast<std::size_t>(round % depth_) * part_;
  }

  Group& group_;
  const Exchange& exchange_;
  std::size_t piece_ = 0;
  std::size_t part_ = 0;
  std::int64_t depth_ = 2;
  std::int64_t rounds_ = 0;
  CacheHint hint_ = CacheHint::kCached;
  std::vector<Source> sources_;  // of what is sent; each round goes on where the last one ended
  std::vector<Target> targets_;
};

struct Lengths {
  std::uint64_t sends;
  std::uint64_t receives;
};

[[noreturn]] void throw_length_mismatch(const Group& group, int from, int to, std::uint64_t sent,
                                        std::uint64_t expected, std::size_t element_bytes) {
  throw Error(Kind::kMismatch,
              text("fastvideo: ", group.attempt(), ": ranks disagree on the splits: rank ", from,
                   " sends ", sent / element_bytes, " elements to rank ", to, ", which expects ",
                   expected / element_bytes,
                   ". No output was touched.\nGroup is now unusable; "
                   "destroy_process_group() and init again."));
}

}  // namespace

void run_exchange(Group& group, const Exchange& exchange) {
  const std::size_t pieces = exchange.same_for_all ? 1 : static_cast<std::size_t>(group.size());
  const std::size_t piece = exchange.largest;
  if (piece * pieces <= kInlineBytes) return run_one_shot(group, exchange, piece);
  if (up_to_line(piece) * pieces <= group.one_shot_bytes()) {
    return run_one_shot(group, exchange, up_to_line(piece));
  }
  group.announce();
  group.wait_announced();
  Pipeline(group, exchange).run();
}

void run_uneven_exchange(Group& group, Exchange exchange, std::size_t element_bytes) {
  const auto size = static_cast<std::size_t>(group.size());
  // Everybody sees everybody's lengths and so comes to the same verdict without a further word.
  auto* own = reinterpret_cast<Lengths*>(group.one_shot());
  for (std::size_t r = 0; r < size; ++r) {
    own[r] = {bytes_of(exchange.send[r]), bytes_of(exchange.receive[r])};
  }
  group.announce();
  group.wait_announced();
  const auto lengths = [&](std::size_t rank) {
    return reinterpret_cast<const Lengths*>(group.one_shot(static_cast<int>(rank)));
  };
  exchange.largest = 0;
  for (std::size_t from = 0; from < size; ++from) {
    for (std::size_t to = 0; to < size; ++to) {
      const std::uint64_t sent = lengths(from)[to].sends;
      const std::uint64_t expected = lengths(to)[from].receives;
      if (sent != expected) {
        throw_length_mismatch(group, static_cast<int>(from), static_cast<int>(to), sent, expected,
                              element_bytes);
      }
      exchange.largest = std::max<std::size_t>(exchange.largest, sent);
    }
  }
  Pipeline(group, exchange).run();
}

}  // namespace fvd::shm
