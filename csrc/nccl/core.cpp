#include "nccl/core.h"

#include <algorithm>
#include <cstring>

namespace fvd::nccl {
namespace {

constexpr milliseconds kLeavePatience{2000};

/// What a rank says of itself before NCCL is asked for anything.
struct Hello {
  std::int32_t usable = 0;
  std::int32_t version = 0;
  std::int32_t device = 0;
  std::int32_t check = 0;
  UniqueId id{};  // of rank 0
  char words[512] = {};
  char no_push[256] = {};  // why its exchanges cannot write into others' memory
};

const char* words_of(std::int32_t check) {
  return check == static_cast<std::int32_t>(NcclCheck::kBefore) ? "before" : "beside";
}

std::string why_no_push(const NcclGroupOptions& options, const Context& context) {
  if (!options.push) return "FASTVIDEO_DIST_PUSH is 0";
  if (context.kernels.barrier == nullptr) return "this package has no kernels for GPUs there";
  return {};
}

std::shared_ptr<Context> context_of(const Communicator& control, const NcclGroupOptions& options) {
  auto context = std::make_shared<Context>();
  context->group = options.group;
  context->rank = control.rank();
  context->size = control.size();
  context->device = options.device;
  return context;
}

}  // namespace

Core::Core(const std::function<Libraries()>& load, std::shared_ptr<Store> store,
           std::unique_ptr<Communicator> control, const NcclGroupOptions& options)
    : context_(context_of(*control, options)),
      store_(std::move(store)),
      control_(std::move(control), *context_),
      check_(options.check),
      watch_interval_(options.watch_interval),
      handle_(context_) {
  context_->group.interrupt = nullptr;  // of the joining thread alone
  try {
    meet(load, options);
  } catch (const Error& error) {
    control_.abort(error.kind(), error.what());
    handle_.abort();
    throw;
  } catch (...) {
    control_.abort(Kind::kAborted, text(context_->where(), " was interrupted while it connected"));
    handle_.abort();
    throw;
  }
  events_ = std::make_shared<EventPool>(context_->cuda);
  in_flight_ = std::make_shared<InFlight>(context_->cuda, *events_);
  lanes_ = std::make_shared<Lanes>(
      context_, control_, events_, in_flight_, check_,
      [this](const Error& error) { break_with(error.kind(), error.what()); });
  push_ = std::make_unique<Push>(*context_, control_, *events_);
  start_watchdog();
}

// Everybody tells how far he got before anybody begins what cannot be done without him.
void Core::meet(const std::function<Libraries()>& load, const NcclGroupOptions& options) {
  Hello mine;
  mine.device = context_->device;
  mine.check = static_cast<std::int32_t>(check_);
  std::optional<Error> own;
  try {
    Libraries libraries = load();
    context_->nccl = std::move(libraries.nccl);
    context_->cuda = std::move(libraries.cuda);
    context_->kernels = libraries.kernels;
    mine.version = context_->nccl.version;
    const DeviceScope device(context_->cuda, context_->device);
    if (context_->rank == 0)
      context_->check_nccl(context_->nccl.get_unique_id(&mine.id), "ncclGetUniqueId");
    why_no_push(options, *context_).copy(mine.no_push, sizeof(mine.no_push) - 1);
    mine.usable = 1;
  } catch (const Error& error) {
    own = error;
    std::strncpy(mine.words, error.what(), sizeof(mine.words) - 1);
  }
  Call call;
  call.timeout = options.group.timeout;
  call.interrupt = options.group.interrupt;
  auto hellos = control_.exchange(mine, call);
  if (own)
    throw Error(own->kind(),
                text("fastvideo: ", context_->where(), " cannot connect its GPU: ", own->what()));
  for (std::size_t rank = 0; rank < hellos.size(); ++rank) {
    Hello& other = hellos[rank];
    other.words[sizeof(other.words) - 1] = '\0';
    FVD_CHECK(other.usable == 1, kUnsupported, "fastvideo: ", context_->where(), ": rank ", rank,
              " cannot connect its GPU: ", other.words);
    FVD_CHECK(other.version == mine.version && other.check == mine.check, kLibrary,
              "fastvideo: ", context_->where(), " has NCCL ", version_text(mine.version), " (",
              context_->nccl.path, ") and FASTVIDEO_DIST_NCCL_CHECK=", words_of(mine.check),
              ", but rank ", rank, " has NCCL ", version_text(other.version), " and ",
              words_of(other.check), "; all ranks must have the same");
  }
  std::vector<std::string> no_push;
  for (Hello& other : hellos) {
    other.no_push[sizeof(other.no_push) - 1] = '\0';
    no_push.emplace_back(other.no_push);
  }
  note_pushes(options, no_push);
  const DeviceScope device(context_->cuda, context_->device);
  handle_.start(hellos[0].id, context_->size, context_->rank);
  // Until there is a watchdog the others are looked after here.
  handle_.settle(call, "connecting", [&] { control_.check_everybody(); });
}

Core::~Core() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  watchdog_.join();
  say_farewell();
  std::optional<DeviceScope> device;
  try {
    device.emplace(context_->cuda, context_->device);
  } catch (const Error&) {  // the driver has gone before us, at the end of the process
  }
  lanes_->leave();
  handle_.finalize();
  const auto end = Clock::now() + kLeavePatience;
  // The others must not write into memory that nobody here looks after any more.
  if (!context_->fate.broken() && !push_->finish(kLeavePatience))
    control_.abort(Kind::kAborted,
                   text(context_->where(), " was destroyed while its exchange was under way"));
  bool well = push_->close();
  well &= lanes_->close(kLeavePatience);
  well &= handle_.close(std::chrono::duration_cast<milliseconds>(end - Clock::now()));
  if (!well)
    context_->fate.set(Kind::kAborted, text("fastvideo: ", context_->where(),
                                            " was destroyed while calls on CUDA were under way"));
  context_->fate.settle();
}

void Core::break_with(Kind kind, const std::string& words) noexcept {
  if (!context_->fate.set(kind, context_->told(words))) return;
  // The others first: ending NCCL may take its time.
  control_.abort(kind, words);
  if (push_ != nullptr) push_->abort();
  handle_.abort();
  lanes_->abort();
  context_->fate.settle();
}

bool Core::capturing(CudaStream stream) const {
  CaptureStatus status = CaptureStatus::kNone;
  check(context_->cuda, context_->cuda.stream_is_capturing(stream, &status),
        "cudaStreamIsCapturing");
  return status != CaptureStatus::kNone;
}

// A group that is broken, or that a rank has left, is found here before anything is enqueued.
void Core::open(Record& record) {
  context_->fate.check_usable(context_->where());
  std::optional<Error> departed;
  {
    const std::lock_guard lock(mutex_);
    record.sequence = ++sequence_;
    last_ = record;
    for (const auto& [member, gone] : departed_)
      if (gone.done < record.sequence) departed = gone.words;
  }
  if (departed) {
    break_with(departed->kind(), departed->what());
    throw *departed;
  }
}

void Core::compare(const Record& record, const Call& call, const Lengths* lengths) {
  if (check_ == NcclCheck::kBeside) {
    control_.note(record);
    return;
  }
  in_words_of(record, [&] {
    control_.check_before(record, call);
    if (lengths != nullptr) control_.check_lengths(lengths->sent, lengths->expected, call);
  });
}

void Core::run(Record record, const Call& call, Staging& staging, bool empty, const Body& body,
               const Lengths* lengths) {
  const DeviceScope device(context_->cuda, context_->device);
  open(record);
  guarded(name(record.op).data(), [&] {
    const CudaStream stream = raw(call.stream);
    const bool captured = capturing(stream);
    // A capture is no call yet, and replaying it is none of the host's.
    if (!captured) compare(record, call, lengths);
    if (empty) return;
    staging.prepare(stream);
    std::optional<InFlight::Entry> entry;
    if (!captured) entry = in_flight_->begin(record, context_->timeout_of(call), stream);
    try {
      {
        const auto held = handle_.lock();
        if (captured) handle_.note_capture(stream);
        CallGroup group(*context_);
        body(handle_.comm(), stream);
        group.end(handle_.comm());
      }
      // Until NCCL has enqueued its kernels nothing that is to come after them may be.
      handle_.settle(call, describe(record));
      staging.finish();
    } catch (...) {
      if (entry) in_flight_->drop(*entry);
      throw;
    }
    if (entry) in_flight_->end(std::move(*entry), stream);
  });
}

void Core::wait_for_stream(const Record& record, const Call& call) {
  const CudaStream stream = raw(call.stream);
  CudaEvent event = events_->take();
  try {
    check(context_->cuda, context_->cuda.event_record(event, stream), "cudaEventRecord");
    HostWait wait(call, context_->timeout_of(call));
    while (!passed(context_->cuda, event)) {
      context_->fate.check();
      FVD_CHECK(wait.pause(), kTimeout, "fastvideo: ", describe(record), " seq ", record.sequence,
                " on ", context_->where(), ": the stream before it was not done after ",
                seconds(wait.timeout()), ".", kWayOut);
    }
  } catch (...) {
    events_->give(event);
    throw;
  }
  events_->give(event);
}

void Core::barrier(const Call& call) {
  const DeviceScope device(context_->cuda, context_->device);
  FVD_CHECK(!capturing(raw(call.stream)), kUnsupported, "fastvideo: barrier on ", context_->where(),
            ": it waits on the CPU and cannot be captured in a CUDA graph");
  Record record{.op = Op::kBarrier};
  open(record);
  guarded("barrier", [&] {
    wait_for_stream(record, call);
    compare(record, call, nullptr);
    if (check_ == NcclCheck::kBefore) return;  // comparing was one
    control_.barrier(call);
  });
}

}  // namespace fvd::nccl
