// A transfer as the caller holds it, who may do so for longer than there is a group.
#include <thread>

#include "nccl/lane_items.h"

namespace fvd::nccl {

/// What the caller holds.
class Lanes::Handed final : public Transfer {
 public:
  Handed(std::shared_ptr<Lanes> lanes, std::shared_ptr<Item> item)
      : lanes_(std::move(lanes)), item_(std::move(item)) {}
  ~Handed() override { lanes_->drop(item_); }

  bool done() override { return lanes_->done(*item_); }
  void wait(const Call& call) override { lanes_->wait(*item_, call); }
  void expire(milliseconds waited) override {
    if (lanes_->done(*item_)) return;
    lanes_->end_group(
        Error(Kind::kTimeout, text("fastvideo: ", item_->title(), " on ", lanes_->context_->where(),
                                   ", waited ", seconds(waited), ".", kWayOut)));
  }
  int source() const override { return item_->sends ? lanes_->context_->rank : item_->peer; }

 private:
  const std::shared_ptr<Lanes> lanes_;
  const std::shared_ptr<Item> item_;
};

std::unique_ptr<Transfer> Lanes::handed(const std::shared_ptr<Item>& item) {
  return std::make_unique<Handed>(shared_from_this(), item);
}

void Lanes::fail(const Error& error) {
  end_group(error);
  wait_ended();
  throw error;
}

// Not under mutex_: the breaker aborts the lanes.
void Lanes::end_group(const Error& error) noexcept {
  const std::lock_guard lock(breaker_mutex_);
  if (breaker_) breaker_(error);
}

// Bounded, as Fate::wait_settled.
void Lanes::wait_ended() const noexcept {
  const auto end = Clock::now() + std::chrono::seconds{2};
  while (!ended() && Clock::now() < end) std::this_thread::sleep_for(milliseconds{1});
}

bool Lanes::done(Item& item) {
  std::optional<Error> failure;
  {
    const std::lock_guard lock(mutex_);
    try {
      return done_locked(item);
    } catch (const Error& error) {
      failure = error;
    }
  }
  end_group(*failure);
  return ended();
}

// Of a transfer that failed too: its memory is the caller's once the device has let go of it.
bool Lanes::done_locked(Item& item) {
  if (item.finished) return true;
  const bool driven = control_ != nullptr && !context_->fate.broken();
  if (driven) drive_locked(lane(item.sends, item.peer));
  switch (item.state) {
    case Item::State::kQueued:
      return !driven;
    case Item::State::kLaunching:
      return ended();
    case Item::State::kIssued:
      break;
  }
  if (item.captured) return true;
  if (!driven) return ended();
  item.finished = passed(context_->cuda, item.end);
  return item.finished;
}

void Lanes::wait(Item& item, const Call& call) {
  HostWait host(call, context_->timeout_of(call));
  try {
    for (;;) {
      {
        const std::lock_guard lock(mutex_);
        if (!item.finished) context_->fate.check();
        if (item.state != Item::State::kIssued) {
          FVD_CHECK(control_ != nullptr, kAborted, "fastvideo: ", item.title(), " on ",
                    context_->where(), ": the group was destroyed before rank ", item.peer,
                    " came to it");
          drive_locked(lane(item.sends, item.peer));
        }
        // A group that is being left may yet have to cut it off.
        const bool settled = item.finished || control_ != nullptr || closed_;
        if (item.state == Item::State::kIssued && settled) break;
      }
      FVD_CHECK(host.pause(), kTimeout, "fastvideo: ", item.title(), " on ", context_->where(),
                ", waited ", seconds(host.waited()), " of ", seconds(host.timeout()), ": rank ",
                item.peer, " has not come to it.", kWayOut);
    }
  } catch (const Error& error) {
    fail(error);
  } catch (...) {
    end_group(
        Error(Kind::kAborted, text(item.title(), " on ", context_->where(), " was interrupted")));
    throw;
  }
  const DeviceScope device(context_->cuda, context_->device);
  check(context_->cuda, context_->cuda.stream_wait_event(raw(call.stream), item.end, 0),
        "cudaStreamWaitEvent");
  const std::lock_guard lock(mutex_);
  item.waited = true;
}

void Lanes::drop(const std::shared_ptr<Item>& item) noexcept {
  std::unique_lock lock(mutex_);
  const bool queued = item->state == Item::State::kQueued;
  if (queued) {
    const auto way = lanes_.find({item->peer, item->sends});
    if (way != lanes_.end()) std::erase(way->second->queue, item);
  }
  bool running = !queued && !item->finished && !item->waited && !item->captured;
  if (running && item->state == Item::State::kIssued && !context_->fate.broken()) {
    try {
      running = !passed(context_->cuda, item->end);
    } catch (const Error&) {  // it has failed, which the watchdog sees too
    }
  }
  // An announced message that is not sent would leave its receiver with the wrong one next.
  const bool announced = queued && item->sends && item->announcement != nullptr;
  events_->give(std::exchange(item->begin, nullptr));
  events_->give(std::exchange(item->end, nullptr));
  lock.unlock();
  if (!running && !announced) return;
  end_group(Error(Kind::kAborted, text("fastvideo: ", item->title(), " on ", context_->where(),
                                       " was given up before it was done", kWayOut)));
  // Its memory is free to go when this returns.
  if (running) wait_ended();
}

}  // namespace fvd::nccl
