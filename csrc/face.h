// One rank's place in a group without torch.distributed: what fastvideo_dist/nccl calls.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bind_buffer.h"
#include "c10d/backend.h"
#include "c10d/device_connection.h"
#include "c10d/group_runner.h"
#include "c10d/host.h"
#include "c10d/translate_errors.h"
#include "comm/communicator.h"
#include "comm/prefixed_store.h"

namespace fvd {

/// What `body` returns, without the interpreter's lock; errors as docs/errors.md says.
template <typename Body>
auto unlocked(Body&& body) {
  return c10d_::translated([&] {
    const pybind11::gil_scoped_release unlocked;
    return body();
  });
}

/// A stream of the buffers' device: its handle, or torch's current one. Nothing on the CPU.
using StreamHandle = std::optional<std::uintptr_t>;

/// A reduction as Python gives it. `factor` is PREMUL_SUM's of floating point; integers are
/// multiplied by `multiplier`, on the CPU once they are summed, which is the same modulo 2^n.
struct Reduction {
  ReduceOp op;
  std::uint64_t multiplier = 1;
};

/// A send or receive under way, with its memory.
class PendingTransfer {
 public:
  PendingTransfer(std::shared_ptr<c10d_::GroupRunner> runner, std::chrono::milliseconds timeout,
                  StreamHandle stream, std::shared_ptr<Communicator> communicator, Buffer buffer)
      : runner_(std::move(runner)),
        timeout_(timeout),
        stream_(stream),
        communicator_(std::move(communicator)),
        buffer_(std::move(buffer)) {}

  /// `begin(communicator, buffer, call)` makes the transfer.
  template <typename Begin>
  void start(const Begin& begin) {
    transfer_ = begin(*communicator_, buffer_, call());
  }

  void wait();

 private:
  Call call() const;

  std::shared_ptr<c10d_::GroupRunner> runner_;
  std::chrono::milliseconds timeout_;
  StreamHandle stream_;
  std::shared_ptr<Communicator> communicator_;  // outlives the transfer
  Buffer buffer_;                               // so does the memory
  std::unique_ptr<Transfer> transfer_;
};

/// The CPU's transport is joined by the constructor, that of another device with the first call on
/// its memory, which is collective like any call.
///
/// Checks nothing that fastvideo_dist/nccl/communicator.py has checked: counts fit, types agree,
/// buffers are on one device.
///
/// On the CPU a call is done when it returns; elsewhere it is enqueued on the stream. Memory of
/// torch's allocator may be dropped then.
class Face {
 public:
  Face(c10d_::CommunicatorFactory factory, const c10d_::Host& host, std::shared_ptr<Store> store,
       int rank, int size, std::string name, std::chrono::milliseconds timeout);
  ~Face();
  Face(const Face&) = delete;

  /// Collective over the ranks that give the same `place`, a word that no earlier group has had.
  std::unique_ptr<Face> split(const std::string& place, int rank, int size,
                              const std::string& name) const;

  void reduce(const Buffer& in, const Buffer* out, std::size_t count, const Reduction& reduction,
              std::optional<int> root, StreamHandle stream);
  void broadcast(const Buffer* in, const Buffer& out, int root, StreamHandle stream);
  void gather(const Buffer& in, const Buffer* out, std::optional<int> root, StreamHandle stream);
  void scatter(const Buffer* in, const Buffer& out, int root, StreamHandle stream);
  void reduce_scatter(const Buffer& in, const Buffer& out, std::size_t count,
                      const Reduction& reduction, StreamHandle stream);
  void all_to_all(const Buffer& in, const Buffer& out, std::size_t count, StreamHandle stream);
  std::unique_ptr<PendingTransfer> send(const Buffer& buffer, int peer, StreamHandle stream);
  std::unique_ptr<PendingTransfer> recv(const Buffer& buffer, int peer, StreamHandle stream);

  /// Within this rank: what it sends to itself.
  void copy(const Buffer& from, const Buffer& to, StreamHandle stream);

  const std::string& name() const noexcept { return name_; }
  void abort(const std::string& reason);
  void close() noexcept;

 private:
  using Buffers = std::initializer_list<const Buffer*>;
  std::unique_ptr<Communicator> join(c10::Device device,
                                     const std::function<void()>* interrupt) const;
  std::shared_ptr<Communicator> communicator_of(const Buffer& buffer);
  Call call_on(const Buffer& buffer, StreamHandle stream) const;
  template <typename Body>
  void run(const Buffers& buffers, StreamHandle stream, const Body& body);
  template <typename Start>
  std::unique_ptr<PendingTransfer> transfer(const Buffer& buffer, StreamHandle stream,
                                            const Start& start);
  std::vector<ConstBlock> split_evenly(const Buffer& buffer, std::size_t count) const;

  const c10d_::CommunicatorFactory factory_;
  const c10d_::Host& host_;
  const std::shared_ptr<Store> store_;
  const int rank_;
  const int size_;
  const std::string name_;
  const std::chrono::milliseconds timeout_;
  std::shared_ptr<PrefixedStore> own_part_;  // store_, if that is a part of another's
  std::shared_ptr<c10d_::GroupRunner> cpu_;
  std::unique_ptr<c10d_::DeviceConnection> gpus_;
  std::timed_mutex gpu_order_;  // of collectives on the GPU
};

}  // namespace fvd
