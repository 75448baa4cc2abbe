#include "c10d/device_group.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <utility>

#include "c10d/torch_compat.h"

namespace fvd::c10d_ {

using c10::impl::VirtualGuardImpl;

DeviceGroup::~DeviceGroup() {
  if (runner_->in_home_process()) {
    close();
  } else {
    new std::shared_ptr<Communicator>(std::move(communicator_));  // the parent's: leave it as it is
  }
}

std::shared_ptr<Communicator> DeviceGroup::current() const {
  const std::lock_guard lock(mutex_);
  return communicator_;
}

std::optional<c10::Device> DeviceGroup::connected() const {
  if (!any_.load(std::memory_order_relaxed)) return std::nullopt;
  const std::lock_guard lock(mutex_);
  return communicator_ ? device_ : std::nullopt;
}

// Under order_.
std::shared_ptr<Communicator> DeviceGroup::communicator(c10::Device device) {
  runner_->communicator();  // a closed group and a forked child are refused in its words
  if (auto existing = current()) {
    FVD_CHECK(*device_ == device, kInvalidArgument, "fastvideo: group \"", runner_->group(),
              "\" works on ", device_->str(), " but the tensor is on ", device.str(),
              "; a group has one GPU for each rank, make another group for this one");
    return existing;
  }
  const c10::DeviceGuard guard(device);
  const VirtualGuardImpl impl(device.type());
  FVD_CHECK(!is_capturing(impl, impl.getStream(device)), kUnsupported, "fastvideo: group \"",
            runner_->group(), "\" has made no call on ", device.str(),
            " yet, so its ranks are not connected there, which cannot be done in the capture of a "
            "CUDA graph; make one call before the capture, or capture within graph_capture()");
  std::shared_ptr<Communicator> made = make_(device);
  const std::lock_guard lock(mutex_);
  communicator_ = made;
  device_ = device;
  any_.store(true, std::memory_order_relaxed);
  return made;
}

void DeviceGroup::connect(c10::Device device) {
  const std::lock_guard order(order_);
  communicator(device);
}

WorkPtr DeviceGroup::run(const DeviceCall& call, const CallMemory& memory,
                         std::vector<at::Tensor> outputs, const GroupRunner::Body& body) {
  const std::lock_guard order(order_);
  const c10::Device device = memory.device;
  try {
    auto communicator = this->communicator(device);
    const VirtualGuardImpl impl(device.type());
    const c10::DeviceGuard on_device(device);
    const auto caller = impl.getStream(device);
    if (call.async && !stream_) stream_ = impl.getStreamFromGlobalPool(device, true);
    const auto stream = call.async ? *stream_ : caller;
    if (call.async) {
      c10::Event inputs_ready(device.type());
      inputs_ready.record(caller);
      inputs_ready.block(stream);
    }
    Call settings;
    settings.timeout = call.timeout;
    settings.stream = native(stream);
    settings.interrupt = runner_->host().interrupt_hook();
    const bool captured = communicator->capturing(settings.stream);
    {
      const c10::StreamGuard on_stream(stream);  // for copies back of what is not contiguous
      body(*communicator, settings);
    }
    c10::Event done(device.type());
    done.record(stream);
    return c10::make_intrusive<DeviceWork>(communicator->rank(), call, runner_, communicator,
                                           stream, std::move(done), captured, std::move(outputs),
                                           call.async ? memory.tensors : std::vector<at::Tensor>{});
  } catch (const Error& error) {
    runner_->note_failure(error.kind());
    throw;
  }
}

WorkPtr DeviceGroup::transfer(const DeviceCall& call, TensorView view, bool sends, int peer,
                              int tag) {
  const std::lock_guard order(order_);
  const c10::Device device = view.memory.device();
  try {
    auto communicator = this->communicator(device);
    const c10::DeviceGuard on_device(device);
    Call settings;
    settings.timeout = call.timeout;
    settings.stream = native(current_stream(device));
    settings.interrupt = runner_->host().interrupt_hook();
    auto started = sends ? communicator->send(view.const_block(), view.type, peer, tag, settings)
                         : communicator->recv(view.block(), view.type, peer, tag, settings);
    return c10::make_intrusive<DeviceTransferWork>(
        communicator->rank(), call, runner_, communicator, std::move(started), std::move(view));
  } catch (const Error& error) {
    runner_->note_failure(error.kind());
    throw;
  }
}

void DeviceGroup::abort(const std::string& reason) noexcept {
  if (!runner_->in_home_process()) return;
  if (const auto communicator = current()) communicator->abort(reason);
}

void DeviceGroup::close() noexcept {
  if (!runner_->in_home_process()) return;
  runner_->host().run_unlocked([&] {
    std::shared_ptr<Communicator> communicator;
    {
      const std::lock_guard lock(mutex_);
      communicator = std::move(communicator_);
    }
    communicator.reset();
  });
}

void DeviceGroup::note_failure() noexcept {
  const auto communicator = current();
  if (!communicator) return;
  try {
    communicator->check();
  } catch (const Error& error) {
    runner_->note_failure(error.kind());
  }
}

}  // namespace fvd::c10d_
