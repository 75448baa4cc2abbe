// A group of ranks that can exchange memory. It knows no tensor, no torch and no Python.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/block_layout.h"
#include "comm/types.h"

namespace fvd {

/// What every call carries besides its memory.
struct Call {
  std::chrono::milliseconds timeout{0};  // 0: the group's own
  Stream stream{};                       // CUDA work is ordered on it; null on the CPU

  /// Called about every 100 ms, and after each signal, while the call waits on the calling thread.
  /// It may throw to give the call up (Ctrl-C); the group is broken then. May be empty.
  const std::function<void()>* interrupt = nullptr;

  /// What the caller means by its blocks, as a hash; 0 if they mean nothing but bytes. Ranks whose
  /// collective has another one disagree (kMismatch), though they may move the same count.
  std::uint64_t layout = 0;
};

/// The outputs of one call on all ranks, as this rank reaches them on its device.
struct Reached {
  std::size_t outputs = 0;         // of one rank
  std::vector<std::byte*> places;  // those of rank 0, then those of rank 1, and so on

  /// On the device: from when it is not 0 nothing may be written to any of them.
  const std::uint32_t* given_up = nullptr;

  std::byte* place(std::size_t rank, std::size_t output) const {
    return places[rank * outputs + output];
  }
};

/// A send or receive under way. Destroying it before it is done gives it up without waiting, and
/// breaks the group if the peer has already seen a part of it.
class Transfer {
 public:
  virtual ~Transfer() = default;

  /// True once the memory may be used again (send) or holds the message (receive), or once it
  /// failed.
  virtual bool done() = 0;

  /// Blocks until done. @throws Error as the calls of Communicator do.
  virtual void wait(const Call& call) = 0;

  /// Its time is up, as the caller says who only asks done(): unless it is done it fails as wait()
  /// does when its deadline has passed, and the group breaks. `waited` is for the message.
  virtual void expire(std::chrono::milliseconds waited) = 0;

  /// The sending rank; for a receive from any source it is known once done.
  virtual int source() const = 0;
};

/// One object per rank and group.
///
/// Order:   every rank makes the same collective calls in the same order; send and receive stand
///          beside that order and match by (source, tag), first sent first received.
/// Threads: any thread may call; two collectives of one group never at once. Sends and receives
///          may start and wait on any thread at any time.
/// Memory:  belongs to the caller and stays untouched by him until the call (or Transfer) is done.
///          Input and output may be the same memory where a call says "in place", else they may
///          not overlap.
/// Values:  the same bits on all ranks and from run to run: contributions are combined in the
///          order of the ranks, in float32 for float16 and bfloat16. NaN propagates through MIN
///          and MAX.
/// Errors:  kInvalidArgument and kUnsupported leave the group usable and are found before anything
///          is sent. All others break it for good on all ranks: every later call throws kAborted
///          at once. On kMismatch no output has been touched.
/// Time:    every call ends by its timeout. A dead peer, an abort and a mismatch are found without
///          it.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const noexcept = 0;
  virtual int size() const noexcept = 0;

  virtual void barrier(const Call& call) = 0;

  /// `data` of the root goes to `data` of all.
  virtual void broadcast(Block data, DataType type, int root, const Call& call) = 0;

  /// In place allowed. `count` elements on every rank.
  virtual void all_reduce(const void* in, void* out, std::size_t count, DataType type, ReduceOp op,
                          const Call& call) = 0;

  /// As all_reduce, but only the root's `out` is written; elsewhere it may be null.
  virtual void reduce(const void* in, void* out, std::size_t count, DataType type, ReduceOp op,
                      int root, const Call& call) = 0;

  /// `in` of rank r goes to `out[r]` of all; blocks of all ranks have equal bytes. `in` may be
  /// out[rank].
  virtual void all_gather(ConstBlock in, std::span<const Block> out, DataType type,
                          const Call& call) = 0;

  /// `in` of rank r goes to `out[r]` of the root; `out` is empty elsewhere.
  virtual void gather(ConstBlock in, std::span<const Block> out, DataType type, int root,
                      const Call& call) = 0;

  /// `in[r]` of the root goes to `out` of rank r; `in` is empty elsewhere.
  virtual void scatter(std::span<const ConstBlock> in, Block out, DataType type, int root,
                       const Call& call) = 0;

  /// `out` of rank r is the reduction of everybody's `in[r]`; `out` holds in[r].bytes(). `out` may
  /// be in[rank] if that is contiguous.
  virtual void reduce_scatter(std::span<const ConstBlock> in, void* out, DataType type, ReduceOp op,
                              const Call& call) = 0;

  /// `in[j]` of rank i goes to `out[i]` of rank j. With `even`, all blocks of all ranks have equal
  /// bytes. Otherwise each pair's lengths are compared before anything moves.
  virtual void all_to_all(std::span<const ConstBlock> in, std::span<const Block> out, DataType type,
                          bool even, const Call& call) = 0;

  /// The same in one call for what lies in several blocks: those of a pair of ranks are laid end to
  /// end, and only their bytes together have to agree. So several tensors travel at once, and a
  /// strided one needs no copy.
  virtual void all_to_all(std::span<const ConstBlocks> in, std::span<const Blocks> out,
                          DataType type, bool even, const Call& call) = 0;

  /// Any number may be under way. `tag` >= 0. Sending to oneself is kInvalidArgument.
  virtual std::unique_ptr<Transfer> send(ConstBlock data, DataType type, int destination, int tag,
                                         const Call& call) = 0;

  /// A message of another length or dtype than expected is kMismatch on both sides.
  virtual std::unique_ptr<Transfer> recv(Block data, DataType type, int source, int tag,
                                         const Call& call) = 0;
  static constexpr int kAnySource = -1;

  /// Breaks the group on this rank and lets the others know; wakes every waiting call. Not
  /// collective.
  virtual void abort(const std::string& reason) noexcept = 0;

  /// Throws what broke the group, here or on another rank, and breaks nothing itself: for who looks
  /// on while nobody waits in a call. On CUDA also for who waits for a stream, on which a call that
  /// failed ends like one that did not.
  virtual void check() const {}

  /// @throws Error(kPeerLost) if `member` has left the group or its process has ended
  virtual void check_member(int /*member*/) const {}

  /// Whether `stream` records a CUDA graph: then calls on it have not run when they return.
  virtual bool capturing(Stream /*stream*/) const { return false; }

  /// Number of collectives begun.
  virtual std::uint64_t sequence_number() const noexcept = 0;

  /// all_to_all of lists that match block by block: for each pair of ranks both sides have the same
  /// number of blocks, in the same order of as many runs of as many bytes, and differ only in where
  /// they lie. A transport whose messages must lie in one piece may make one of each run.
  virtual void all_to_all_runs(std::span<const ConstBlocks> in, std::span<const Blocks> out,
                               DataType type, const Call& call) {
    all_to_all(in, out, type, false, call);
  }

  /// Lets each rank write into the outputs of all, where ranks share memory on a device.
  ///
  /// On the call's stream: waits until the streams of all ranks have come to this call, then does
  /// what `write` enqueues, then waits until all ranks have written. Collective. `outputs`:
  /// contiguous, as many on every rank.
  ///
  /// Returns nothing if it was done so. Else it returns why it cannot be, and nothing is enqueued
  /// on any rank: all come to the same end, and may make another call of it.
  virtual std::optional<std::string> push(std::span<const Block> /*outputs*/, DataType /*type*/,
                                          const std::function<void(const Reached&)>& /*write*/,
                                          const Call& /*call*/) {
    return "this transport has no memory that ranks share on a device";
  }

  /// Whether push() may ever do it: if so, ranks that call it have begun a collective.
  virtual bool may_push() const { return false; }

  /// Within this rank's memory, in the order of the call's stream. Not collective. On a GPU
  /// the two may not overlap.
  virtual void copy(const void* from, void* to, std::size_t bytes, const Call& /*call*/) {
    if (bytes > 0) std::memmove(to, from, bytes);
  }

  /// check() for who may ask when the communicator has gone: it throws then if destroying it cut
  /// off what was under way. Empty where calls are done when they return.
  virtual std::function<void()> checker() const { return {}; }
};

}  // namespace fvd
