#include "c10d/device_work.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <system_error>
#include <thread>
#include <utility>

#include "c10d/translate_errors.h"

namespace fvd::c10d_ {
namespace {

using Clock = std::chrono::steady_clock;
using c10::impl::VirtualGuardImpl;

/// torch's allocator may give memory out again only when `stream` is done with it. Costs little
/// where it was allocated for that stream.
void used_on(const std::vector<at::Tensor>& tensors, const c10::Stream& stream) {
  const VirtualGuardImpl device(stream.device_type());
  for (const auto& tensor : tensors)
    device.recordDataPtrOnStream(tensor.storage().data_ptr(), stream);
}

FuturePtr completed_future(c10::Device device, const std::vector<at::Tensor>& outputs) {
  auto future = c10::make_intrusive<c10::ivalue::Future>(c10::ListType::ofTensors(),
                                                         std::vector<c10::Device>{device});
  future->markCompleted(c10::IValue(outputs));
  return future;
}

std::exception_ptr failure_of(const std::function<void()>& checker) {
  try {
    translated(checker);
    return nullptr;
  } catch (...) {
    return std::current_exception();
  }
}

void check(const std::function<void()>& checker, GroupRunner& runner) {
  try {
    checker();
  } catch (const Error& error) {
    runner.note_failure(error.kind());
    throw_translated(error);
  }
}

/// Until `done`, at most `timeout`. @throws DistBackendError
template <typename Done>
void wait_on_host(Done&& done, GroupRunner& runner, const char* operation, int rank,
                  std::chrono::milliseconds timeout) {
  const auto* interrupt = runner.host().interrupt_hook();
  const auto end = Clock::now() + timeout;
  auto pause = std::chrono::microseconds{20};
  while (!done()) {
    if (Clock::now() >= end)
      C10_THROW_ERROR(
          DistBackendError,
          text("fastvideo: ", operation, " on rank ", rank, " is not done after the ",
               timeout.count(), " ms given to wait(); it goes on, wait() again or give more time"));
    if (interrupt != nullptr) (*interrupt)();
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, std::chrono::microseconds{1000});
  }
}

}  // namespace

c10::Stream current_stream(c10::Device device) {
  return VirtualGuardImpl(device.type()).getStream(device);
}

Stream native(const c10::Stream& stream) { return {stream.native_handle()}; }

DeviceWork::DeviceWork(int rank, const DeviceCall& call, std::shared_ptr<GroupRunner> runner,
                       std::function<void()> checker, c10::Stream stream, c10::Event done,
                       bool captured, std::vector<at::Tensor> outputs, std::vector<at::Tensor> held)
    : Work(rank, call.type, call.title,
           call.title == nullptr ? std::nullopt : std::optional(outputs)),
      operation_(call.operation),
      sequence_(call.sequence),
      runner_(std::move(runner)),
      checker_(std::move(checker)),
      stream_(stream),
      done_(std::move(done)),
      captured_(captured),
      outputs_(std::move(outputs)),
      held_(std::move(held)) {
  // What the profiler sees is the host's part, and that is over.
  if (auto end = std::exchange(recordFunctionEndCallback_, nullptr)) end();
}

DeviceWork::~DeviceWork() {
  // In a forked child there is no device; what is held is the parent's.
  if (held_.empty() || !runner_->in_home_process()) return;
  try {
    used_on(held_, stream_);
  } catch (const std::exception&) {  // the driver has gone, at the end of the process
  }
}

bool DeviceWork::isCompleted() { return captured_ || done_.query(); }

bool DeviceWork::isSuccess() const { return exception() == nullptr; }

std::exception_ptr DeviceWork::exception() const { return failure_of(checker_); }

void DeviceWork::synchronize() {
  const auto stream = current_stream(stream_.device());
  done_.block(stream);
  std::vector<at::Tensor> held;
  {
    std::lock_guard lock(mutex_);
    held = std::exchange(held_, {});
  }
  used_on(held, stream);
}

bool DeviceWork::wait(std::chrono::milliseconds timeout) {
  if (timeout > kNoTimeout && !captured_) {
    wait_on_host(
        [&] {
          check(checker_, *runner_);
          return done_.query();
        },
        *runner_, operation_, rank_, timeout);
  }
  synchronize();
  mark_waited(*this);
  check(checker_, *runner_);
  return true;
}

FuturePtr DeviceWork::getFuture() {
  std::lock_guard lock(mutex_);
  if (!future_) {
    const c10::StreamGuard guard(stream_);
    future_ = completed_future(stream_.device(), outputs_);
  }
  return future_;
}

// Outlives the work if that is dropped before the transfer is done.
struct DeviceTransferWork::State {
  std::function<void()> checker;
  TensorView view;  // keeps the memory until the transfer, which goes first, has let go of it
  std::unique_ptr<Transfer> transfer;
  std::shared_ptr<GroupRunner> runner;
  DeviceCall call;
  int rank;
  bool waited = false;

  // The device is c10's to set back, which makes no context on the GPU that it goes back to.
  bool done() const {
    const c10::DeviceGuard on_device(view.memory.device());
    return transfer->done();
  }
};

DeviceTransferWork::DeviceTransferWork(int rank, const DeviceCall& call,
                                       std::shared_ptr<GroupRunner> runner,
                                       std::function<void()> checker,
                                       std::unique_ptr<Transfer> transfer, TensorView view)
    : Work(rank, call.type, call.title,
           call.title == nullptr ? std::nullopt : std::optional(std::vector{view.memory})),
      state_(new State{std::move(checker), std::move(view), std::move(transfer), std::move(runner),
                       call, rank}) {
  state_->view.call = nullptr;
  if (auto end = std::exchange(recordFunctionEndCallback_, nullptr)) end();
}

DeviceTransferWork::~DeviceTransferWork() {
  if (!state_->runner->in_home_process()) {
    new std::shared_ptr<State>(std::move(state_));  // the parent's: not ours to give up
    return;
  }
  {
    std::lock_guard lock(mutex_);
    if (state_->waited) return;
  }
  try {
    if (state_->done()) return;
    if (state_->runner->poll_aside([state = state_] { return state->done(); })) return;
  } catch (const std::exception&) {  // no thread to be had, no driver
  }
  // Given up here, as the state goes; the peer will learn.
}

bool DeviceTransferWork::isCompleted() { return state_->done(); }

bool DeviceTransferWork::isSuccess() const { return exception() == nullptr; }

std::exception_ptr DeviceTransferWork::exception() const { return failure_of(state_->checker); }

bool DeviceTransferWork::wait(std::chrono::milliseconds timeout) {
  if (timeout > kNoTimeout) {
    wait_on_host(
        [&] {
          check(state_->checker, *state_->runner);
          return isCompleted();
        },
        *state_->runner, state_->call.operation, rank_, timeout);
  }
  const c10::DeviceGuard on_device(state_->view.memory.device());
  const auto stream = current_stream(state_->view.memory.device());
  Call call;
  call.timeout = state_->call.timeout;
  call.stream = native(stream);
  call.interrupt = state_->runner->host().interrupt_hook();
  try {
    state_->transfer->wait(call);
  } catch (const Error& error) {
    state_->runner->note_failure(error.kind());
    throw_translated(error);
  }
  used_on({state_->view.memory}, stream);
  {
    std::lock_guard lock(mutex_);
    state_->waited = true;
  }
  mark_waited(*this);
  return true;
}

int DeviceTransferWork::sourceRank() const { return state_->transfer->source(); }

FuturePtr DeviceTransferWork::getFuture() {
  const auto device = state_->view.memory.device();
  const c10::StreamGuard guard(VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device));
  wait();
  return completed_future(device, result());
}

std::vector<at::Tensor> DeviceTransferWork::result() { return {state_->view.memory}; }

FuturePtr device_future(const std::vector<WorkPtr>& works) {
  std::optional<c10::Device> device;
  std::vector<at::Tensor> outputs;
  for (const auto& work : works) {
    for (auto& tensor : work->result()) {
      if (tensor.is_cuda()) device = tensor.device();
      outputs.push_back(tensor);
    }
  }
  if (!device) return nullptr;
  const c10::StreamGuard guard(VirtualGuardImpl(device->type()).getStreamFromGlobalPool(*device));
  for (const auto& work : works) work->wait();
  return completed_future(*device, outputs);
}

}  // namespace fvd::c10d_
