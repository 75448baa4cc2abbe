#include "bind_communicator.h"

#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bind_buffer.h"
#include "c10d/group_runner.h"
#include "c10d/translate_errors.h"
#include "comm/communicator.h"
#include "comm/prefixed_store.h"
#include "shm/meetings.h"

namespace fvd {
namespace {

using c10d_::CommunicatorFactory;
using c10d_::GroupRunner;
using c10d_::Host;
using std::chrono::milliseconds;

/// What `body` returns, without the interpreter's lock; errors as docs/errors.md says.
template <typename Body>
auto unlocked(Body&& body) {
  return c10d_::translated([&] {
    const py::gil_scoped_release unlocked;
    return body();
  });
}

using StreamHandle = std::uintptr_t;

Stream stream_of(StreamHandle handle) { return {reinterpret_cast<void*>(handle)}; }

/// What the processor does itself, it does with memory it can reach.
void check_reachable(const Buffer& buffer, const char* what) {
  FVD_CHECK(buffer.device.is_cpu(), kUnsupported, what, " on ", buffer.device.str(),
            " is not supported yet");
}

/// A reduction as Python gives it. `factor` is PREMUL_SUM's of floating point; integers are summed,
/// then multiplied by `multiplier`, which is the same modulo 2^n.
struct Reduction {
  ReduceOp op;
  std::uint64_t multiplier = 1;
};

template <typename T>
void multiply(std::byte* data, std::size_t count, std::uint64_t multiplier) {
  auto* values = reinterpret_cast<T*>(data);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<T>(values[i] * multiplier);
}

void multiply(const Buffer& out, std::size_t count, std::uint64_t multiplier) {
  if (multiplier == 1) return;
  check_reachable(out, "a PreMulSum of integers");
  switch (out.element_bytes()) {
    case 1:
      return multiply<std::uint8_t>(out.data, count, multiplier);
    case 4:
      return multiply<std::uint32_t>(out.data, count, multiplier);
    default:
      return multiply<std::uint64_t>(out.data, count, multiplier);
  }
}

ConstBlock const_block(const Buffer& buffer, std::size_t begin, std::size_t count) {
  return contiguous_block(static_cast<const void*>(buffer.at(begin)),
                          count * buffer.element_bytes());
}
Block block(const Buffer& buffer, std::size_t begin, std::size_t count) {
  return contiguous_block(static_cast<void*>(buffer.at(begin)), count * buffer.element_bytes());
}

/// A send or receive under way, with its memory.
class PendingTransfer {
 public:
  PendingTransfer(std::shared_ptr<GroupRunner> runner, milliseconds timeout,
                  std::shared_ptr<Communicator> communicator, std::unique_ptr<Transfer> transfer,
                  Buffer buffer)
      : runner_(std::move(runner)),
        timeout_(timeout),
        communicator_(std::move(communicator)),
        transfer_(std::move(transfer)),
        buffer_(std::move(buffer)) {}

  void wait() {
    Call call;
    call.timeout = timeout_;
    call.interrupt = runner_->host().interrupt_hook();
    unlocked([&] {
      runner_->check_usable();
      transfer_->wait(call);
    });
  }

 private:
  std::shared_ptr<GroupRunner> runner_;
  milliseconds timeout_;
  std::shared_ptr<Communicator> communicator_;  // outlives the transfer
  std::unique_ptr<Transfer> transfer_;
  Buffer buffer_;
};

/// One rank's place in a group. The CPU's transport is joined by the constructor, that of another
/// device with the first call on its memory, which is collective like any call.
///
/// Checks nothing that fastvideo_dist/nccl/communicator.py has checked: counts fit, types agree,
/// buffers are on one device. `stream` is a handle of that device, 0 on the CPU.
class Face {
 public:
  Face(CommunicatorFactory factory, const Host& host, std::shared_ptr<Store> store, int rank,
       int size, std::string name, milliseconds timeout)
      : factory_(std::move(factory)),
        host_(host),
        store_(std::move(store)),
        rank_(rank),
        size_(size),
        name_(std::move(name)),
        timeout_(timeout) {
    cpu_ = join(c10::kCPU);
  }
  ~Face() {
    close();
    // Not in the constructor's failures: the others have yet to read why this rank gave up.
    if (own_part_) host_.run_unlocked([&] { own_part_->remove_written(); });
  }
  Face(const Face&) = delete;

  /// Collective over the ranks that give the same `place`, a word that no earlier group has had.
  std::unique_ptr<Face> split(const std::string& place, int rank, int size,
                              const std::string& name) const {
    return unlocked([&] {
      auto part = std::make_shared<PrefixedStore>(store_, place + "/");
      auto child = std::make_unique<Face>(factory_, host_, part, rank, size, name, timeout_);
      child->own_part_ = std::move(part);
      return child;
    });
  }

  void reduce(const Buffer& in, const Buffer* out, std::size_t count, const Reduction& reduction,
              std::optional<int> root, StreamHandle stream) {
    run(runner_of(in), stream, [&](Communicator& group, const Call& call) {
      const Call own = meaning(call, reduction);
      void* to = out == nullptr ? nullptr : out->data;
      if (root) {
        group.reduce(in.data, to, count, in.type, reduction.op, *root, own);
      } else {
        group.all_reduce(in.data, to, count, in.type, reduction.op, own);
      }
      if (out != nullptr) multiply(*out, count, reduction.multiplier);
    });
  }

  void broadcast(const Buffer* in, const Buffer& out, int root, StreamHandle stream) {
    run(runner_of(out), stream, [&](Communicator& group, const Call& call) {
      group.broadcast(block(in == nullptr ? out : *in, 0, out.count), out.type, root, call);
      if (in != nullptr && in->data != out.data) copy(*in, out);
    });
  }

  void gather(const Buffer& in, const Buffer* out, std::optional<int> root, StreamHandle stream) {
    run(runner_of(in), stream, [&](Communicator& group, const Call& call) {
      std::vector<Block> parts;
      for (int r = 0; out != nullptr && r < size_; ++r) {
        parts.push_back(block(*out, static_cast<std::size_t>(r) * in.count, in.count));
      }
      const ConstBlock own = const_block(in, 0, in.count);
      if (root) {
        group.gather(own, parts, in.type, *root, call);
      } else {
        group.all_gather(own, parts, in.type, call);
      }
    });
  }

  void scatter(const Buffer* in, const Buffer& out, int root, StreamHandle stream) {
    run(runner_of(out), stream, [&](Communicator& group, const Call& call) {
      const auto parts = in == nullptr ? std::vector<ConstBlock>{} : split_evenly(*in, out.count);
      group.scatter(parts, block(out, 0, out.count), out.type, root, call);
    });
  }

  void reduce_scatter(const Buffer& in, const Buffer& out, std::size_t count,
                      const Reduction& reduction, StreamHandle stream) {
    run(runner_of(in), stream, [&](Communicator& group, const Call& call) {
      group.reduce_scatter(split_evenly(in, count), out.data, in.type, reduction.op,
                           meaning(call, reduction));
      multiply(out, count, reduction.multiplier);
    });
  }

  void all_to_all(const Buffer& in, const Buffer& out, std::size_t count, StreamHandle stream) {
    run(runner_of(in), stream, [&](Communicator& group, const Call& call) {
      const auto sources = split_evenly(in, count);
      std::vector<Block> targets;
      for (int r = 0; r < size_; ++r) {
        targets.push_back(block(out, static_cast<std::size_t>(r) * count, count));
      }
      group.all_to_all(std::span<const ConstBlock>(sources), std::span<const Block>(targets),
                       in.type, true, call);
    });
  }

  std::unique_ptr<PendingTransfer> send(const Buffer& buffer, int peer, StreamHandle stream) {
    return transfer(buffer, stream, [&](Communicator& group, const Call& call) {
      return group.send(const_block(buffer, 0, buffer.count), buffer.type, peer, 0, call);
    });
  }

  std::unique_ptr<PendingTransfer> recv(const Buffer& buffer, int peer, StreamHandle stream) {
    return transfer(buffer, stream, [&](Communicator& group, const Call& call) {
      return group.recv(block(buffer, 0, buffer.count), buffer.type, peer, 0, call);
    });
  }

  const std::string& name() const noexcept { return name_; }

  void abort(const std::string& reason) {
    const py::gil_scoped_release unlocked;
    for (const auto& runner : runners()) runner->abort(reason);
  }

  void close() noexcept {
    for (const auto& runner : runners()) runner->close(milliseconds{2000});
  }

  static void copy(const Buffer& from, const Buffer& to) {
    check_reachable(to, "a copy to the receive buffer");
    std::memmove(to.data, from.data, from.count * from.element_bytes());
  }

 private:
  std::shared_ptr<GroupRunner> join(c10::Device device) {
    GroupOptions options;
    options.name = name_;
    options.timeout = timeout_;
    options.interrupt = host_.interrupt_hook();
    return std::make_shared<GroupRunner>(factory_(device, store_, rank_, size_, options), name_,
                                         host_);
  }

  std::shared_ptr<GroupRunner> runner_of(const Buffer& buffer) {
    if (buffer.device.is_cpu()) return cpu_;
    return unlocked([&] {
      const std::lock_guard lock(mutex_);
      auto& runner = others_[buffer.device.type()];
      if (!runner) runner = join(buffer.device);
      return runner;
    });
  }

  std::vector<std::shared_ptr<GroupRunner>> runners() {
    std::vector<std::shared_ptr<GroupRunner>> all;
    if (cpu_) all.push_back(cpu_);
    const std::lock_guard lock(mutex_);
    for (const auto& [device, runner] : others_) all.push_back(runner);
    return all;
  }

  template <typename Body>
  void run(const std::shared_ptr<GroupRunner>& runner, StreamHandle stream, const Body& body) {
    // Two references fit into the function without an allocation. Nothing is ever queued here, so
    // the body runs now, on this thread.
    const auto on_stream = [&body, &stream](Communicator& group, const Call& call) {
      Call own = call;
      own.stream = stream_of(stream);
      body(group, own);
    };
    unlocked([&] { runner->run(on_stream, timeout_); });
  }

  template <typename Start>
  std::unique_ptr<PendingTransfer> transfer(const Buffer& buffer, StreamHandle stream,
                                            const Start& start) {
    auto runner = runner_of(buffer);
    return unlocked([&] {
      auto communicator = runner->communicator();
      Call call;
      call.timeout = timeout_;
      call.stream = stream_of(stream);
      auto begun = start(*communicator, call);
      return std::make_unique<PendingTransfer>(std::move(runner), timeout_, std::move(communicator),
                                               std::move(begun), buffer);
    });
  }

  /// Ranks that multiply by different numbers disagree on the call.
  static Call meaning(Call call, const Reduction& reduction) {
    call.layout = reduction.multiplier - 1;
    return call;
  }

  std::vector<ConstBlock> split_evenly(const Buffer& buffer, std::size_t count) const {
    std::vector<ConstBlock> parts;
    for (int r = 0; r < size_; ++r) {
      parts.push_back(const_block(buffer, static_cast<std::size_t>(r) * count, count));
    }
    return parts;
  }

  const CommunicatorFactory factory_;
  const Host& host_;
  const std::shared_ptr<Store> store_;
  const int rank_;
  const int size_;
  const std::string name_;
  const milliseconds timeout_;
  std::shared_ptr<PrefixedStore> own_part_;  // store_, if that is a part of another's
  std::shared_ptr<GroupRunner> cpu_;
  std::mutex mutex_;
  std::map<c10::DeviceType, std::shared_ptr<GroupRunner>> others_;  // guarded by mutex_
};

/// The ranks of `id` meet. Each may come once: two groups on one id would read each other's words.
std::unique_ptr<Face> meet(const CommunicatorFactory& factory, const Host& host,
                           const std::string& id, int rank, int size, std::string name,
                           double seconds) {
  return unlocked([&] {
    auto store = shm::open_meeting(id);
    FVD_CHECK(store->add("came/" + std::to_string(rank), 1) == 1, kInvalidArgument, "rank ", rank,
              " has used this unique id already; one id makes one communicator, so get another");
    // From here on the id is of no use to anybody else, however this ends.
    struct AtTheEnd {
      const std::string& id;
      ~AtTheEnd() { shm::close_meeting(id); }
    } const at_the_end{id};
    if (name.empty()) name = shm::name_of_meeting(id);
    const milliseconds timeout(static_cast<std::int64_t>(seconds * 1000));
    return std::make_unique<Face>(factory, host, std::move(store), rank, size, std::move(name),
                                  timeout);
  });
}

ReduceKind kind_of(const std::string& op) {
  for (const ReduceKind kind : {ReduceKind::kSum, ReduceKind::kProduct, ReduceKind::kMax,
                                ReduceKind::kMin, ReduceKind::kAvg, ReduceKind::kPremulSum}) {
    if (name(kind) == op) return kind;
  }
  throw py::value_error("no reduction is called " + op);
}

void bind_classes(py::module_& module) {
  py::class_<Reduction>(module, "Reduction", "How contributions are combined. See _C.pyi.")
      .def(py::init([](const std::string& op, double factor, std::uint64_t multiplier) {
             return Reduction{{kind_of(op), factor}, multiplier};
           }),
           py::arg("op"), py::arg("factor") = 1.0, py::arg("multiplier") = 1);
  py::class_<PendingTransfer>(module, "Transfer", "A send or receive under way. See _C.pyi.")
      .def("wait", &PendingTransfer::wait);
}

}  // namespace

void bind_communicator(py::module_& module, CommunicatorFactory factory, const Host& (*host)()) {
  bind_classes(module);
  py::class_<Face>(module, "Communicator", "One rank's place in a group. See _C.pyi.")
      .def(py::init([factory = std::move(factory), host](const py::bytes& id, int rank, int size,
                                                         std::string name, double timeout) {
             return meet(factory, host(), id, rank, size, std::move(name), timeout);
           }),
           py::arg("unique_id"), py::arg("rank"), py::arg("size"), py::arg("name"),
           py::arg("timeout"))
      .def_property_readonly("name", &Face::name)
      .def("split", &Face::split, py::arg("place"), py::arg("rank"), py::arg("size"),
           py::arg("name"))
      .def("reduce", &Face::reduce, py::arg("send"), py::arg("recv"), py::arg("count"),
           py::arg("reduction"), py::arg("root"), py::arg("stream"))
      .def("broadcast", &Face::broadcast, py::arg("send"), py::arg("recv"), py::arg("root"),
           py::arg("stream"))
      .def("gather", &Face::gather, py::arg("send"), py::arg("recv"), py::arg("root"),
           py::arg("stream"))
      .def("scatter", &Face::scatter, py::arg("send"), py::arg("recv"), py::arg("root"),
           py::arg("stream"))
      .def("reduce_scatter", &Face::reduce_scatter, py::arg("send"), py::arg("recv"),
           py::arg("count"), py::arg("reduction"), py::arg("stream"))
      .def("all_to_all", &Face::all_to_all, py::arg("send"), py::arg("recv"), py::arg("count"),
           py::arg("stream"))
      .def("send", &Face::send, py::arg("buffer"), py::arg("peer"), py::arg("stream"))
      .def("recv", &Face::recv, py::arg("buffer"), py::arg("peer"), py::arg("stream"))
      .def("abort", &Face::abort, py::arg("reason"))
      .def("close", &Face::close);
  module.def("copy",
             [](const Buffer& from, const Buffer& to) { unlocked([&] { Face::copy(from, to); }); });
  module.def("create_unique_id",
             [] { return py::bytes(unlocked([] { return shm::create_meeting(); })); });
}

}  // namespace fvd
