#include "nccl/lanes.h"

#include <deque>
#include <utility>

namespace fvd::nccl {
namespace {

/// What the sender says of a message before it goes.
struct Announcement {
  std::uint64_t bytes = 0;
  std::int32_t tag = 0;
  std::int32_t type = 0;

  bool operator==(const Announcement&) const = default;
};

std::string words(const Announcement& message) {
  return text(message.bytes, " bytes of ", name(static_cast<DataType>(message.type)), " with tag ",
              message.tag);
}

template <typename T>
Block bytes_of_object(T& object) {
  return contiguous_block(static_cast<void*>(&object), sizeof(T));
}
template <typename T>
ConstBlock bytes_of_object(const T& object) {
  return contiguous_block(static_cast<const void*>(&object), sizeof(T));
}

}  // namespace

struct Lanes::Lane {
  Lane(std::shared_ptr<Context> context, bool sends, int peer)
      : handle(std::move(context)), sends(sends), peer(peer) {}

  Handle handle;
  const bool sends;
  const int peer;
  CudaStream stream = nullptr;
  UniqueId id{};
  std::unique_ptr<Transfer> id_message;
  bool connected = false;
  std::deque<std::shared_ptr<Item>> queue;  // not launched, or being launched (the first)
};

struct Lanes::Item {
  enum class State { kQueued, kLaunching, kIssued };

  Item(const Context& context, bool sends) : staging(context, sends ? "send" : "recv") {}

  State state = State::kQueued;
  bool sends = false;
  int peer = 0;
  std::size_t bytes = 0;
  Record record;
  milliseconds timeout{0};
  bool captured = false;
  CudaEvent begin = nullptr, end = nullptr;  // on the caller's stream; on the lane's
  Staging staging;
  Staging::Place place;
  InFlight::Entry entry;
  Announcement mine, theirs;
  std::unique_ptr<Transfer> announcement;
  bool announced = false;
  bool finished = false;  // seen to be done on the device
  bool waited = false;    // a stream of the caller waits for it: he may drop it

  std::string title() const {
    return text(sends ? "send to" : "recv from", " rank ", peer, " (", words(mine), ")");
  }
};

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
    try {
      lanes_->fail(Error(Kind::kTimeout,
                         text("fastvideo: ", item_->title(), " on ", lanes_->context_->where(),
                              ", waited ", seconds(waited), ".", kWayOut)));
    } catch (const Error&) {  // wait() throws it
    }
  }
  int source() const override { return item_->sends ? lanes_->context_->rank : item_->peer; }

 private:
  const std::shared_ptr<Lanes> lanes_;
  const std::shared_ptr<Item> item_;
};

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
  auto handed = std::make_unique<Handed>(shared_from_this(), item);  // gives up what fails below
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
  return handed;
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
  if (control_ == nullptr) return;
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
}

void Lanes::drive() {
  const std::lock_guard lock(mutex_);
  for (auto& [key, lane] : lanes_) drive_locked(*lane);
}

bool Lanes::need(int member) {
  const std::lock_guard lock(mutex_);
  for (const auto& [key, lane] : lanes_)
    if (lane->peer == member && !lane->queue.empty()) return true;
  return false;
}

void Lanes::fail(const Error& error) {
  // Not under the mutex: the breaker aborts the lanes.
  if (breaker_) breaker_(error);
  context_->fate.wait_settled();
  throw error;
}

bool Lanes::done(Item& item) {
  const std::lock_guard lock(mutex_);
  if (item.finished || context_->fate.broken() || control_ == nullptr) return true;
  try {
    drive_locked(lane(item.sends, item.peer));
    if (item.state != Item::State::kIssued || item.captured) return false;
    item.finished = passed(context_->cuda, item.end);
  } catch (const Error&) {
    return false;  // the next wait(), or the watchdog, finds it again and ends the group
  }
  return item.finished;
}

void Lanes::wait(Item& item, const Call& call) {
  HostWait host(call, context_->timeout_of(call));
  try {
    for (;;) {
      {
        const std::lock_guard lock(mutex_);
        if (!item.finished) {
          context_->fate.check();
          FVD_CHECK(control_ != nullptr, kAborted, "fastvideo: ", context_->where(),
                    " was destroyed");
          if (item.state != Item::State::kIssued) drive_locked(lane(item.sends, item.peer));
        }
        if (item.state == Item::State::kIssued) break;
      }
      FVD_CHECK(host.pause(), kTimeout, "fastvideo: ", item.title(), " on ", context_->where(),
                ", waited ", seconds(host.waited()), " of ", seconds(host.timeout()), ": rank ",
                item.peer, " has not come to it.", kWayOut);
    }
  } catch (const Error& error) {
    fail(error);
  } catch (...) {
    if (breaker_)
      breaker_(
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
  const bool running =
      item->state != Item::State::kQueued && !item->finished && !item->waited && !item->captured;
  if (item->state == Item::State::kQueued) {
    auto& queue = lanes_[{item->peer, item->sends}]->queue;
    std::erase(queue, item);
  }
  bool lost = false;
  if (running && !context_->fate.broken() && control_ != nullptr) {
    try {
      lost = item->state == Item::State::kLaunching || !passed(context_->cuda, item->end);
    } catch (const Error&) {
      lost = true;
    }
  }
  // An announced message that is not sent would leave its receiver with the wrong one next.
  if (item->state == Item::State::kQueued && item->announcement != nullptr && control_ != nullptr)
    lost = lost || item->sends;
  events_->give(std::exchange(item->begin, nullptr));
  events_->give(std::exchange(item->end, nullptr));
  lock.unlock();
  if (lost && breaker_)
    breaker_(Error(Kind::kAborted, text("fastvideo: ", item->title(), " on ", context_->where(),
                                        " was given up before it was done")));
}

void Lanes::abort() noexcept {
  // Whoever holds it may be stuck in NCCL, which only the abort ends.
  std::unique_lock lock(mutex_, std::defer_lock);
  lock_within(lock, Handle::kStuck);
  for (auto& [key, lane] : lanes_) lane->handle.abort();
}

void Lanes::leave() noexcept {
  const std::lock_guard lock(mutex_);
  if (control_ == nullptr) return;
  control_ = nullptr;
  for (auto& [key, lane] : lanes_) {
    for (auto& item : lane->queue) item->announcement.reset();
    lane->queue.clear();
    lane->id_message.reset();
    lane->handle.finalize();
  }
}

void Lanes::close(milliseconds patience) noexcept {
  leave();
  const std::lock_guard lock(mutex_);
  const auto end = Clock::now() + patience;
  for (auto& [key, lane] : lanes_) {
    lane->handle.close(std::chrono::duration_cast<milliseconds>(end - Clock::now()));
    if (lane->stream != nullptr) context_->cuda.stream_destroy(std::exchange(lane->stream, {}));
  }
}

}  // namespace fvd::nccl
