#include "c10d/device_group.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <utility>

namespace fvd::c10d_ {

using c10::impl::VirtualGuardImpl;

WorkPtr DeviceGroup::run(const DeviceCall& call, const CallMemory& memory,
                         std::vector<at::Tensor> outputs, const GroupRunner::Body& body) {
  const auto order = wait_for_turn(order_, runner_->host());
  const c10::Device device = memory.device;
  try {
    const auto communicator = connection_.communicator(device);
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
    return c10::make_intrusive<DeviceWork>(
        communicator->rank(), call, runner_, communicator->checker(), stream, std::move(done),
        captured, std::move(outputs), call.async ? memory.tensors : std::vector<at::Tensor>{});
  } catch (const Error& error) {
    runner_->note_failure(error.kind());
    throw;
  }
}

WorkPtr DeviceGroup::transfer(const DeviceCall& call, TensorView view, bool sends, int peer,
                              int tag) {
  const c10::Device device = view.memory.device();
  try {
    const auto communicator = connection_.communicator(device);
    const c10::DeviceGuard on_device(device);
    Call settings;
    settings.timeout = call.timeout;
    settings.stream = native(current_stream(device));
    settings.interrupt = runner_->host().interrupt_hook();
    auto started = sends ? communicator->send(view.const_block(), view.type, peer, tag, settings)
                         : communicator->recv(view.block(), view.type, peer, tag, settings);
    return c10::make_intrusive<DeviceTransferWork>(communicator->rank(), call, runner_,
                                                   communicator->checker(), std::move(started),
                                                   std::move(view));
  } catch (const Error& error) {
    runner_->note_failure(error.kind());
    throw;
  }
}

void DeviceGroup::note_failure() noexcept {
  const auto communicator = connection_.current();
  if (!communicator) return;
  try {
    communicator->check();
  } catch (const Error& error) {
    runner_->note_failure(error.kind());
  }
}

}  // namespace fvd::c10d_
