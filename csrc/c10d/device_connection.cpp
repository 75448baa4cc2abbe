#include "c10d/device_connection.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "c10d/torch_compat.h"

namespace fvd::c10d_ {

using c10::impl::VirtualGuardImpl;

namespace {

/// Makes `device` current, for what NCCL sets back when it ends: c10 knows how to go back to a GPU
/// without making a context there. Nothing at the end of the process, when there is no driver.
class EndScope {
 public:
  explicit EndScope(const std::optional<c10::Device>& device) noexcept {
    try {
      if (device) guard_.reset_device(*device);
    } catch (const std::exception&) {
    }
  }

 private:
  c10::OptionalDeviceGuard guard_;
};

}  // namespace

std::unique_lock<std::timed_mutex> wait_for_turn(std::timed_mutex& mutex, const Host& host) {
  std::unique_lock lock(mutex, std::try_to_lock);
  if (lock.owns_lock()) return lock;
  const auto* interrupt = host.interrupt_hook();
  while (!lock.try_lock_for(kInterruptInterval)) {
    if (interrupt != nullptr) (*interrupt)();
  }
  return lock;
}

DeviceConnection::~DeviceConnection() {
  if (ranks_->in_home_process()) {
    close();
  } else {
    new std::shared_ptr<Communicator>(std::move(communicator_));  // the parent's: leave it as it is
  }
}

std::shared_ptr<Communicator> DeviceConnection::current() const {
  const std::lock_guard lock(mutex_);
  return communicator_;
}

std::optional<c10::Device> DeviceConnection::device() const {
  if (!any_.load(std::memory_order_relaxed)) return std::nullopt;
  const std::lock_guard lock(mutex_);
  return communicator_ ? device_ : std::nullopt;
}

std::shared_ptr<Communicator> DeviceConnection::existing(c10::Device device) const {
  const std::lock_guard lock(mutex_);
  if (communicator_ == nullptr) return nullptr;
  FVD_CHECK(*device_ == device, kInvalidArgument, "fastvideo: group \"", ranks_->group(),
            "\" works on ", device_->str(), " but the tensor is on ", device.str(),
            "; a group has one GPU for each rank, make another group for this one");
  return communicator_;
}

// A rank that has gone will not come, and who gave the group up waits for nobody.
void DeviceConnection::check_wanted() const {
  {
    const std::lock_guard lock(mutex_);
    FVD_CHECK(given_up_.empty(), kAborted, "fastvideo: connecting the GPUs of group \"",
              ranks_->group(), "\" was given up: ", given_up_);
  }
  const auto ranks = ranks_->communicator();
  for (int rank = 0; rank < ranks->size(); ++rank)
    if (rank != ranks->rank()) ranks->check_member(rank);
}

std::shared_ptr<Communicator> DeviceConnection::communicator(c10::Device device) {
  ranks_->communicator();  // a closed group and a forked child are refused in its words
  if (auto made = existing(device)) return made;
  const auto making = wait_for_turn(making_, ranks_->host());
  if (auto made = existing(device)) return made;
  check_wanted();
  const auto* of_host = ranks_->host().interrupt_hook();
  const Interrupt interrupt = [this, of_host] {
    check_wanted();
    if (of_host != nullptr) (*of_host)();
  };
  const c10::DeviceGuard guard(device);
  const VirtualGuardImpl impl(device.type());
  FVD_CHECK(!is_capturing(impl, impl.getStream(device)), kUnsupported, "fastvideo: group \"",
            ranks_->group(), "\" has made no call on ", device.str(),
            " yet, so its ranks are not connected there, which cannot be done in the capture of a "
            "CUDA graph; make one call before the capture, or capture within graph_capture()");
  std::shared_ptr<Communicator> made = make_(device, interrupt);
  {
    const std::lock_guard lock(mutex_);
    if (!closed_) {
      communicator_ = made;
      device_ = device;
      any_.store(true, std::memory_order_relaxed);
    }
  }
  if (current() == nullptr) check_wanted();  // closed meanwhile
  return made;
}

void DeviceConnection::give_up(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (given_up_.empty()) given_up_ = reason;
}

void DeviceConnection::abort(const std::string& reason) noexcept {
  if (!ranks_->in_home_process()) return;
  give_up(reason);
  const EndScope scope(device());
  if (const auto communicator = current()) communicator->abort(reason);
}

void DeviceConnection::close() noexcept {
  if (!ranks_->in_home_process()) return;
  ranks_->host().run_unlocked([&] {
    give_up("the group was destroyed");
    const EndScope scope(device());
    std::shared_ptr<Communicator> communicator;
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      communicator = std::move(communicator_);
    }
    communicator.reset();
  });
}

}  // namespace fvd::c10d_
