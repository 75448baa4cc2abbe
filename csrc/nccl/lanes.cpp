#include "nccl/lanes.h"

#include <utility>

#include "nccl/lane_items.h"

namespace fvd::nccl {
namespace {

template <typename T>
Block bytes_of_object(T& object) {
  return contiguous_block(static_cast<void*>(&object), sizeof(T));
}
template <typename T>
ConstBlock bytes_of_object(const T& object) {
  return contiguous_block(static_cast<const void*>(&object), sizeof(T));
}

}  // namespace

Lanes::Lanes(std::shared_ptr<Context> context, Control& control, std::shared_ptr<EventPool> events,
             std::shared_ptr<InFlight> in_flight, NcclCheck check,
             std::function<void(const Error&)> breaker)
    : context_(std::move(context)),
      control_(&control),
      events_(std::move(events)),
      in_flight_(std::move(in_flight)),
      check_(check),
      breaker_(std::move(breaker)) {}

Lanes::~Lanes() { close(milliseconds{0}); }

Lanes::Lane& Lanes::lane(bool sends, int peer) {
  auto& lane = lanes_[{peer, sends}];
  if (lane == nullptr) {
    lane = std::make_unique<Lane>(context_, sends, peer);
    check(context_->cuda, context_->cuda.stream_create(&lane->stream, kStreamNonBlocking, 0),
          "cudaStreamCreateWithPriority");
  }
  return *lane;
}

std::unique_ptr<Transfer> Lanes::start(bool sends, Block data, DataType type, int peer, int tag,
                                       const Call& call) {
  const DeviceScope device(context_->cuda, context_->device);
  auto item = std::make_shared<Item>(*context_, sends);
  item->sends = sends;
  item->peer = peer;
  item->bytes = data.bytes();
  item->timeout = context_->timeout_of(call);
  item->record = {.count = item->bytes / element_size(type),
                  .root = peer,
                  .op = sends ? Op::kSend : Op::kRecv,
                  .type = type,
                  .has_type = 1};
  item->mine = {item->bytes, tag, static_cast<std::int32_t>(type)};
  const ConstBlock source{data.data, data.runs, data.run_bytes, data.run_stride};
  item->place = sends ? item->staging.input({&source, 1}) : item->staging.output({&data, 1});
  CaptureStatus capture = CaptureStatus::kNone;
  check(context_->cuda, context_->cuda.stream_is_capturing(raw(call.stream), &capture),
        "cudaStreamIsCapturing");
  item->captured = capture != CaptureStatus::kNone;
  auto transfer = handed(item);  // gives up what fails below
  const std::lock_guard lock(mutex_);
  FVD_CHECK(control_ != nullptr, kAborted, "fastvideo: ", context_->where(), " was destroyed");
  Lane& way = lane(sends, peer);
  FVD_CHECK(!item->captured || (way.connected && way.queue.empty()), kUnsupported,
            "fastvideo: ", item->title(), " on ", context_->where(),
            " in a CUDA graph capture: the two ranks are "
            "not connected yet; exchange one message before the capture, and wait for it");
  if (item->captured) {
    const auto held = way.handle.lock();
    way.handle.note_capture(raw(call.stream));
  }
  item->begin = events_->take();
  item->end = events_->take();
  check(context_->cuda, context_->cuda.event_record(item->begin, raw(call.stream)),
        "cudaEventRecord");
  way.queue.push_back(item);
  if (check_ == NcclCheck::kBefore && !item->captured) {
    item->announcement =
        sends ? control_->group().send(bytes_of_object(std::as_const(item->mine)), DataType::kUInt8,
                                       peer, Control::kTransfer, {})
              : control_->group().recv(bytes_of_object(item->theirs), DataType::kUInt8, peer,
                                       Control::kTransfer, {});
  }
  drive_locked(way);
  return transfer;
}

// The sender makes the id, both connect as soon as they have it, nobody waits.
void Lanes::connect(Lane& lane) {
  if (!lane.handle.started()) {
    if (lane.id_message == nullptr) {
      if (lane.sends) {
        context_->check_nccl(context_->nccl.get_unique_id(&lane.id), "ncclGetUniqueId");
        lane.id_message = control_->group().send(bytes_of_object(std::as_const(lane.id)),
                                                 DataType::kUInt8, lane.peer, Control::kLaneId, {});
      } else {
        lane.id_message = control_->group().recv(bytes_of_object(lane.id), DataType::kUInt8,
                                                 lane.peer, Control::kLaneId, {});
      }
    }
    if (!lane.sends) {
      if (!lane.id_message->done()) return;
      lane.id_message->wait({});
    }
    lane.handle.start(lane.id, 2, lane.sends ? 0 : 1);
  }
  lane.connected = lane.handle.ready();
}

// A message that is not the one expected must not be written anywhere.
bool Lanes::may_begin(Item& item) {
  if (item.announced || item.announcement == nullptr) return true;
  if (!item.announcement->done()) return item.sends;  // the receiver is the one who compares
  item.announcement->wait({});
  item.announced = true;
  FVD_CHECK(item.sends || item.mine == item.theirs, kMismatch, "fastvideo: recv on ",
            context_->where(), " expects ", words(item.mine), " but rank ", item.peer, " sends ",
            words(item.theirs), ". No output was touched.", kWayOut);
  return true;
}

void Lanes::launch(Lane& lane, Item& item) {
  const Context& context = *context_;
  check(context.cuda, context.cuda.stream_wait_event(lane.stream, item.begin, 0),
        "cudaStreamWaitEvent");
  item.staging.prepare(lane.stream);
  if (!item.captured) item.entry = in_flight_->begin(item.record, item.timeout, lane.stream);
  item.state = Item::State::kLaunching;
  if (item.bytes == 0) return;
  const auto held = lane.handle.lock();
  CallGroup group(context);
  std::byte* data = item.staging.at(item.place);
  const Comm comm = lane.handle.comm();
  context.check_nccl(
      item.sends ? context.nccl.send(data, item.bytes, WireType::kUInt8, 1, comm, lane.stream)
                 : context.nccl.recv(data, item.bytes, WireType::kUInt8, 0, comm, lane.stream),
      item.sends ? "ncclSend" : "ncclRecv", comm);
  group.end(comm);
}

void Lanes::launched(Lane& lane, Item& item) {
  item.staging.finish();
  check(context_->cuda, context_->cuda.event_record(item.end, lane.stream), "cudaEventRecord");
  if (!item.captured) in_flight_->end(std::exchange(item.entry, {}), lane.stream);
  item.state = Item::State::kIssued;
}

void Lanes::drive_locked(Lane& lane) {
  if (control_ == nullptr || lane.failed) return;
  try {
    const DeviceScope device(context_->cuda, context_->device);
    if (!lane.connected) connect(lane);
    if (lane.sends && lane.id_message != nullptr && lane.id_message->done()) {
      lane.id_message->wait({});
    }
    while (lane.connected && !lane.queue.empty()) {
      Item& item = *lane.queue.front();
      if (item.state == Item::State::kQueued) {
        if (!may_begin(item)) return;
        launch(lane, item);
      }
      // While NCCL connects the two, nothing may follow on this stream.
      if (!lane.handle.ready()) return;
      launched(lane, item);
      lane.queue.pop_front();
    }
  } catch (...) {
    lane.failed = true;
    throw;
  }
}

void Lanes::drive() {
  const std::lock_guard lock(mutex_);
  for (auto& [key, lane] : lanes_) {
    drive_locked(*lane);
    // What NCCL finds while a transfer runs is told to nobody who does not ask.
    if (lane->connected && control_ != nullptr) lane->handle.ready();
  }
}

bool Lanes::need(int member) {
  const std::lock_guard lock(mutex_);
  for (const auto& [key, lane] : lanes_)
    if (lane->peer == member && !lane->queue.empty()) return true;
  return false;
}

void Lanes::abort() noexcept {
  // Whoever holds it may be stuck in NCCL, which only the abort ends.
  std::unique_lock lock(mutex_, std::defer_lock);
  lock_within(lock, Handle::kStuck);
  for (auto& [key, lane] : lanes_) lane->handle.abort();
}

void Lanes::leave() noexcept {
  {
    const std::lock_guard lock(breaker_mutex_);
    breaker_ = nullptr;
  }
  const std::lock_guard lock(mutex_);
  if (control_ == nullptr) return;
  control_ = nullptr;
  for (auto& [key, lane] : lanes_) {
    for (auto& item : lane->queue) item->announcement.reset();
    std::erase_if(lane->queue,
                  [](const auto& item) { return item->state == Item::State::kQueued; });
    lane->id_message.reset();
    lane->handle.finalize();
  }
}

bool Lanes::close(milliseconds patience) noexcept {
  leave();
  const std::lock_guard lock(mutex_);
  const auto end = Clock::now() + patience;
  bool well = true;
  for (auto& [key, lane] : lanes_) {
    well &= lane->handle.close(std::chrono::duration_cast<milliseconds>(end - Clock::now()));
    well &= lane->queue.empty();
    for (auto& item : lane->queue) item->staging.give_back();
    lane->queue.clear();
    if (lane->stream != nullptr) context_->cuda.stream_destroy(std::exchange(lane->stream, {}));
  }
  closed_ = true;
  return well;
}

}  // namespace fvd::nccl
