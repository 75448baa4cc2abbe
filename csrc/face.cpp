#include "face.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <span>
#include <utility>

#include "c10d/device_work.h"

namespace fvd {

using c10::impl::VirtualGuardImpl;
using c10d_::CommunicatorFactory;
using c10d_::DeviceConnection;
using c10d_::GroupRunner;
using c10d_::Host;
using std::chrono::milliseconds;

namespace {

/// Of the memory's device. A stream of another package is to c10 a number that is its handle.
c10::Stream stream_of(StreamHandle handle, c10::Device device) {
  if (!handle) return c10d_::current_stream(device);
  constexpr std::uintptr_t kLegacyDefault = 1;  // as cudaStreamLegacy
  const auto id = *handle == kLegacyDefault ? 0 : *handle;
  return c10::Stream(c10::Stream::UNSAFE, device, static_cast<c10::StreamId>(id));
}

Stream native(StreamHandle handle, c10::Device device) {
  if (device.is_cpu()) return {};
  if (handle) return {reinterpret_cast<void*>(*handle)};
  return c10d_::native(c10d_::current_stream(device));
}

template <typename T>
void multiply(std::byte* data, std::size_t count, std::uint64_t multiplier) {
  auto* values = reinterpret_cast<T*>(data);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<T>(values[i] * multiplier);
}

void multiply(const Buffer& out, std::size_t count, std::uint64_t multiplier) {
  if (multiplier == 1 || !out.device.is_cpu()) return;
  switch (out.element_bytes()) {
    case 1:
      return multiply<std::uint8_t>(out.data, count, multiplier);
    case 4:
      return multiply<std::uint32_t>(out.data, count, multiplier);
    default:
      return multiply<std::uint64_t>(out.data, count, multiplier);
  }
}

/// NCCL multiplies by itself.
ReduceOp operation(const Reduction& reduction, const Buffer& buffer) {
  if (reduction.multiplier == 1 || buffer.device.is_cpu()) return reduction.op;
  return {ReduceKind::kPremulSum, 1.0, reduction.multiplier};
}

/// Ranks that multiply by different numbers disagree on the call.
Call meaning(Call call, const Reduction& reduction) {
  call.layout = reduction.multiplier - 1;
  return call;
}

/// The caller may drop memory of torch's now: it is given out again when the stream is done with
/// it. Nothing to do on the current stream: what comes after this comes after the call.
void keep(std::initializer_list<const Buffer*> buffers, StreamHandle stream) {
  if (!stream) return;
  for (const Buffer* buffer : buffers) {
    if (buffer == nullptr || !buffer->tensor.defined() || buffer->device.is_cpu()) continue;
    VirtualGuardImpl(buffer->device.type())
        .recordDataPtrOnStream(buffer->tensor.storage().data_ptr(),
                               stream_of(stream, buffer->device));
  }
}

ConstBlock const_block(const Buffer& buffer, std::size_t begin, std::size_t count) {
  return contiguous_block(static_cast<const void*>(buffer.at(begin)),
                          count * buffer.element_bytes());
}
Block block(const Buffer& buffer, std::size_t begin, std::size_t count) {
  return contiguous_block(static_cast<void*>(buffer.at(begin)), count * buffer.element_bytes());
}

}  // namespace

Call PendingTransfer::call() const {
  Call call;
  call.timeout = timeout_;
  call.stream = native(stream_, buffer_.device);
  call.interrupt = runner_->host().interrupt_hook();
  return call;
}

void PendingTransfer::wait() {
  unlocked([&] {
    runner_->check_usable();
    const c10::DeviceGuard on_device(buffer_.device);
    transfer_->wait(call());
    keep({&buffer_}, stream_);
  });
}

Face::Face(CommunicatorFactory factory, const Host& host, std::shared_ptr<Store> store, int rank,
           int size, std::string name, milliseconds timeout)
    : factory_(std::move(factory)),
      host_(host),
      store_(std::move(store)),
      rank_(rank),
      size_(size),
      name_(std::move(name)),
      timeout_(timeout) {
  cpu_ = std::make_shared<GroupRunner>(join(c10::kCPU, host_.interrupt_hook()), name_, host_);
  gpus_ = std::make_unique<DeviceConnection>(
      cpu_, [this](c10::Device device, const DeviceConnection::Interrupt& interrupt) {
        return join(device, &interrupt);
      });
}

Face::~Face() {
  close();
  // Not in the constructor's failures: the others have yet to read why this rank gave up.
  if (own_part_) host_.run_unlocked([&] { own_part_->remove_written(); });
}

std::unique_ptr<Communicator> Face::join(c10::Device device,
                                         const std::function<void()>* interrupt) const {
  GroupOptions options;
  options.name = name_;
  options.timeout = timeout_;
  options.interrupt = interrupt;
  return factory_(device, store_, rank_, size_, options);
}

std::unique_ptr<Face> Face::split(const std::string& place, int rank, int size,
                                  const std::string& name) const {
  return unlocked([&] {
    auto part = std::make_shared<PrefixedStore>(store_, place + "/");
    auto child = std::make_unique<Face>(factory_, host_, part, rank, size, name, timeout_);
    child->own_part_ = std::move(part);
    return child;
  });
}

void Face::abort(const std::string& reason) {
  const pybind11::gil_scoped_release unlocked;
  if (gpus_) gpus_->abort(reason);
  cpu_->abort(reason);
}

void Face::close() noexcept {
  if (gpus_) gpus_->close();
  if (cpu_) cpu_->close(milliseconds{2000});
}

std::shared_ptr<Communicator> Face::communicator_of(const Buffer& buffer) {
  return buffer.device.is_cpu() ? cpu_->communicator() : gpus_->communicator(buffer.device);
}

Call Face::call_on(const Buffer& buffer, StreamHandle stream) const {
  Call call;
  call.timeout = timeout_;
  call.stream = native(stream, buffer.device);
  call.interrupt = host_.interrupt_hook();
  return call;
}

template <typename Body>
void Face::run(const Buffers& buffers, StreamHandle stream, const Body& body) {
  const Buffer& first = **buffers.begin();
  unlocked([&] {
    if (first.device.is_cpu()) {
      // Nothing is ever queued here, so the body runs now, on this thread.
      cpu_->run(std::cref(body), timeout_);
      return;
    }
    const auto order = c10d_::wait_for_turn(gpu_order_, host_);
    const auto communicator = communicator_of(first);
    const c10::DeviceGuard on_device(first.device);
    body(*communicator, call_on(first, stream));
    keep(buffers, stream);
  });
}

void Face::reduce(const Buffer& in, const Buffer* out, std::size_t count,
                  const Reduction& reduction, std::optional<int> root, StreamHandle stream) {
  run({&in, out}, stream, [&](Communicator& group, const Call& call) {
    const Call own = meaning(call, reduction);
    const ReduceOp op = operation(reduction, in);
    void* to = out == nullptr ? nullptr : out->data;
    if (root) {
      group.reduce(in.data, to, count, in.type, op, *root, own);
    } else {
      group.all_reduce(in.data, to, count, in.type, op, own);
    }
    if (out != nullptr) multiply(*out, count, reduction.multiplier);
  });
}

void Face::broadcast(const Buffer* in, const Buffer& out, int root, StreamHandle stream) {
  run({&out, in}, stream, [&](Communicator& group, const Call& call) {
    group.broadcast(block(in == nullptr ? out : *in, 0, out.count), out.type, root, call);
    if (in != nullptr && in->data != out.data)
      group.copy(in->data, out.data, out.count * out.element_bytes(), call);
  });
}

void Face::gather(const Buffer& in, const Buffer* out, std::optional<int> root,
                  StreamHandle stream) {
  run({&in, out}, stream, [&](Communicator& group, const Call& call) {
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

void Face::scatter(const Buffer* in, const Buffer& out, int root, StreamHandle stream) {
  run({&out, in}, stream, [&](Communicator& group, const Call& call) {
    const auto parts = in == nullptr ? std::vector<ConstBlock>{} : split_evenly(*in, out.count);
    group.scatter(parts, block(out, 0, out.count), out.type, root, call);
  });
}

void Face::reduce_scatter(const Buffer& in, const Buffer& out, std::size_t count,
                          const Reduction& reduction, StreamHandle stream) {
  run({&in, &out}, stream, [&](Communicator& group, const Call& call) {
    group.reduce_scatter(split_evenly(in, count), out.data, in.type, operation(reduction, in),
                         meaning(call, reduction));
    multiply(out, count, reduction.multiplier);
  });
}

void Face::all_to_all(const Buffer& in, const Buffer& out, std::size_t count, StreamHandle stream) {
  run({&in, &out}, stream, [&](Communicator& group, const Call& call) {
    const auto sources = split_evenly(in, count);
    std::vector<Block> targets;
    for (int r = 0; r < size_; ++r) {
      targets.push_back(block(out, static_cast<std::size_t>(r) * count, count));
    }
    group.all_to_all(std::span<const ConstBlock>(sources), std::span<const Block>(targets), in.type,
                     true, call);
  });
}

template <typename Start>
std::unique_ptr<PendingTransfer> Face::transfer(const Buffer& buffer, StreamHandle stream,
                                                const Start& start) {
  return unlocked([&] {
    auto communicator = communicator_of(buffer);
    const c10::DeviceGuard on_device(buffer.device);
    auto pending =
        std::make_unique<PendingTransfer>(cpu_, timeout_, stream, std::move(communicator), buffer);
    pending->start(start);
    return pending;
  });
}

std::unique_ptr<PendingTransfer> Face::send(const Buffer& buffer, int peer, StreamHandle stream) {
  return transfer(buffer, stream, [&](Communicator& group, const Buffer& own, const Call& call) {
    return group.send(const_block(own, 0, own.count), own.type, peer, 0, call);
  });
}

std::unique_ptr<PendingTransfer> Face::recv(const Buffer& buffer, int peer, StreamHandle stream) {
  return transfer(buffer, stream, [&](Communicator& group, const Buffer& own, const Call& call) {
    return group.recv(block(own, 0, own.count), own.type, peer, 0, call);
  });
}

void Face::copy(const Buffer& from, const Buffer& to, StreamHandle stream) {
  unlocked([&] {
    const auto communicator = communicator_of(to);
    const c10::DeviceGuard on_device(to.device);
    communicator->copy(from.data, to.data, from.count * from.element_bytes(), call_on(to, stream));
    keep({&from, &to}, stream);
  });
}

std::vector<ConstBlock> Face::split_evenly(const Buffer& buffer, std::size_t count) const {
  std::vector<ConstBlock> parts;
  for (int r = 0; r < size_; ++r) {
    parts.push_back(const_block(buffer, static_cast<std::size_t>(r) * count, count));
  }
  return parts;
}

}  // namespace fvd
