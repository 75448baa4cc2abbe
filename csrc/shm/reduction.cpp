#include "shm/reduction.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "shm/copy.h"
#include "shm/reduce.h"

namespace fvd::shm {
namespace {

constexpr std::size_t up_to(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

/// One pointer per rank, without an allocation for the usual group.
class Sources {
 public:
  explicit Sources(int size)
      : size_(static_cast<std::size_t>(size)), many_(size_ > 16 ? size_ : 0) {}
  const void*& operator[](int rank) { return data()[static_cast<std::size_t>(rank)]; }
  operator std::span<const void* const>() { return {data(), size_}; }

 private:
  const void** data() { return many_.empty() ? few_ : many_.data(); }
  std::size_t size_;
  const void* few_[16] = {};
  std::vector<const void*> many_;
};

bool writes_result(const Group& group, int root) { return root < 0 || root == group.rank(); }

/// Everybody reduces everything: one phase, and N reads of something that fits the caches.
void all_reduce_one_shot(Group& group, const void* in, void* out, std::size_t count, DataType type,
                         ReduceOp op, int root) {
  const std::size_t bytes = count * element_size(type);
  const bool in_line = bytes <= kInlineBytes;
  if (bytes != 0) std::memcpy(in_line ? group.inline_payload() : group.one_shot(), in, bytes);
  group.announce();
  group.wait_announced();
  if (!writes_result(group, root)) return;
  Sources sources(group.size());
  for (int r = 0; r < group.size(); ++r) {
    sources[r] = in_line ? group.inline_payload(r) : group.one_shot(r);
  }
  sources[group.rank()] = in;
  reduce(out, sources, count, type, op);
}

/// A round is `chunk` bytes of the tensor, cut into one slice per rank. Rank r stages all slices
/// but its own, reduces slice r out of everybody's staging area and its own memory into `out` and
/// its staging area, and copies the other slices from where they were reduced.
class AllReducePipeline {
 public:
  AllReducePipeline(Group& group, const void* in, void* out, std::size_t count, DataType type,
                    ReduceOp op, int root)
      : group_(group),
        in_(static_cast<const std::byte*>(in)),
        out_(static_cast<std::byte*>(out)),
        bytes_(count * element_size(type)),
        type_(type),
        op_(op),
        root_(root),
        ranks_(static_cast<std::size_t>(group.size())) {
    half_ = group.pipeline_bytes() / 2 / kLineBytes * kLineBytes;
    // A half holds a chunk and one reduced slice. kLineBytes is a multiple of every element's size.
    slice_ = half_ / (ranks_ + 1) / kLineBytes * kLineBytes;
    const std::size_t fair_share = up_to((bytes_ + ranks_ - 1) / ranks_, kLineBytes);
    slice_ = std::min(slice_, fair_share);
    rounds_ = static_cast<std::int64_t>((bytes_ + slice_ * ranks_ - 1) / (slice_ * ranks_));
  }

  void run() {
    stage(0);
    for (std::int64_t round = 0; round < rounds_; ++round) {
      if (round + 1 < rounds_) stage(round + 1);
      reduce_slice(round);
      fetch(round);
    }
  }

 private:
  struct Range {
    std::size_t begin;  // in the tensor
    std::size_t bytes;
  };
  Range slice(std::int64_t round, std::size_t rank) const {
    const std::size_t begin = (static_cast<std::size_t>(round) * ranks_ + rank) * slice_;
    if (begin >= bytes_) return {bytes_, 0};
    return {begin, std::min(slice_, bytes_ - begin)};
  }
  std::size_t half_offset(std::int64_t round) const { return (round & 1) != 0 ? half_ : 0; }
  std::size_t staged_offset(std::int64_t round, std::size_t rank) const {
    return half_offset(round) + rank * slice_;
  }
  std::size_t result_offset(std::int64_t round) const {
    return half_offset(round) + ranks_ * slice_;
  }

  void stage(std::int64_t round) {
    for (int r = 0; round >= 2 && r < group_.size(); ++r) {
      if (r != group_.rank()) group_.wait_for(r, &Progress::consumed, round - 2);
    }
    std::byte* area = group_.pipeline();
    for (std::size_t r = 0; r < ranks_; ++r) {
      const Range range = slice(round, r);
      if (static_cast<int>(r) == group_.rank() || range.bytes == 0) continue;
      std::memcpy(area + staged_offset(round, r), in_ + range.begin, range.bytes);
    }
    group_.publish(&Progress::staged, round);
  }

  void reduce_slice(std::int64_t round) {
    const auto rank = static_cast<std::size_t>(group_.rank());
    const Range range = slice(round, rank);
    Sources sources(group_.size());
    for (int r = 0; r < group_.size(); ++r) {
      if (r == group_.rank()) continue;
      group_.wait_for(r, &Progress::staged, round);
      sources[r] = group_.member(r).pipeline() + staged_offset(round, rank);
    }
    sources[group_.rank()] = in_ + range.begin;
    std::byte* result = group_.pipeline() + result_offset(round);
    if (range.bytes != 0) {
      reduce(result, sources, range.bytes / element_size(type_), type_, op_);
      if (writes_result(group_, root_)) std::memcpy(out_ + range.begin, result, range.bytes);
    }
    group_.publish(&Progress::reduced, round);
  }

  void fetch(std::int64_t round) {
    for (int step = 1; writes_result(group_, root_) && step < group_.size(); ++step) {
      const int owner = (group_.rank() + step) % group_.size();
      const Range range = slice(round, static_cast<std::size_t>(owner));
      group_.wait_for(owner, &Progress::reduced, round);
      if (range.bytes == 0) continue;
      std::memcpy(out_ + range.begin, group_.member(owner).pipeline() + result_offset(round),
                  range.bytes);
    }
    group_.publish(&Progress::consumed, round);
  }

  Group& group_;
  const std::byte* in_;
  std::byte* out_;
  std::size_t bytes_;
  DataType type_;
  ReduceOp op_;
  int root_;
  std::size_t ranks_;
  std::size_t half_ = 0;
  std::size_t slice_ = 0;
  std::int64_t rounds_ = 0;
};

/// A round is `piece` bytes of every block. Rank r stages its pieces for the others and reduces
/// piece r.
class ReduceScatterRounds {
 public:
  ReduceScatterRounds(Group& group, std::span<const ConstBlock> in, void* out, DataType type,
                      ReduceOp op)
      : group_(group), in_(in), out_(static_cast<std::byte*>(out)), type_(type), op_(op) {}

  void stage(std::byte* area, std::size_t offset, std::size_t piece) {
    for (int r = 0; r < group_.size(); ++r) {
      const ConstBlock& block = in_[static_cast<std::size_t>(r)];
      // The own block is read where it lies, unless it lies in runs.
      if (r == group_.rank() && block.contiguous()) continue;
      copy_range(area + static_cast<std::size_t>(r) * piece, block, offset,
                 std::min(piece, block.bytes() - offset));
    }
  }

  template <typename AreaOf>
  void reduce_own(const AreaOf& area_of, std::size_t offset, std::size_t piece) {
    const auto rank = static_cast<std::size_t>(group_.rank());
    const ConstBlock& own = in_[rank];
    Sources sources(group_.size());
    for (int r = 0; r < group_.size(); ++r) sources[r] = area_of(r) + rank * piece;
    if (own.contiguous()) sources[group_.rank()] = own.data + offset;
    const std::size_t bytes = std::min(piece, own.bytes() - offset);
    reduce(out_ + offset, sources, bytes / element_size(type_), type_, op_);
  }

 private:
  Group& group_;
  std::span<const ConstBlock> in_;
  std::byte* out_;
  DataType type_;
  ReduceOp op_;
};

}  // namespace

void run_all_reduce(Group& group, const void* in, void* out, std::size_t count, DataType type,
                    ReduceOp op, int root) {
  if (count * element_size(type) <= group.one_shot_bytes()) {
    return all_reduce_one_shot(group, in, out, count, type, op, root);
  }
  group.announce();
  group.wait_announced();
  AllReducePipeline(group, in, out, count, type, op, root).run();
}

void run_reduce_scatter(Group& group, std::span<const ConstBlock> in, void* out, DataType type,
                        ReduceOp op) {
  const auto ranks = static_cast<std::size_t>(group.size());
  const std::size_t bytes = in[0].bytes();
  ReduceScatterRounds rounds(group, in, out, type, op);
  const std::size_t whole = up_to(bytes, kLineBytes);
  if (bytes * ranks <= kInlineBytes || whole * ranks <= group.one_shot_bytes()) {
    const bool in_line = bytes * ranks <= kInlineBytes;
    const std::size_t piece = in_line ? bytes : whole;
    rounds.stage(in_line ? group.inline_payload() : group.one_shot(), 0, piece);
    group.announce();
    group.wait_announced();
    const auto area_of = [&](int r) {
      return in_line ? group.inline_payload(r) : group.one_shot(r);
    };
    rounds.reduce_own(area_of, 0, piece);
    return;
  }
  group.announce();
  group.wait_announced();
  const std::size_t half = group.pipeline_bytes() / 2 / kLineBytes * kLineBytes;
  const std::size_t piece = std::min(half / ranks / kLineBytes * kLineBytes, whole);
  const auto count = static_cast<std::int64_t>((bytes + piece - 1) / piece);
  const auto half_offset = [&](std::int64_t round) { return (round & 1) != 0 ? half : 0; };
  const auto stage = [&](std::int64_t round) {
    for (int r = 0; round >= 2 && r < group.size(); ++r) {
      if (r != group.rank()) group.wait_for(r, &Progress::consumed, round - 2);
    }
    rounds.stage(group.pipeline() + half_offset(round), static_cast<std::size_t>(round) * piece,
                 piece);
    group.publish(&Progress::staged, round);
  };
  stage(0);
  for (std::int64_t round = 0; round < count; ++round) {
    if (round + 1 < count) stage(round + 1);
    for (int r = 0; r < group.size(); ++r) {
      if (r != group.rank()) group.wait_for(r, &Progress::staged, round);
    }
    const auto area_of = [&](int r) { return group.member(r).pipeline() + half_offset(round); };
    rounds.reduce_own(area_of, static_cast<std::size_t>(round) * piece, piece);
    group.publish(&Progress::consumed, round);
  }
}

}  // namespace fvd::shm
