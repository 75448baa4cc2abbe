#include "nccl/fake_cuda.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "nccl/fake_memory.h"

namespace fvd::test {
namespace {

using namespace fvd::nccl;

/// Shared with its thread, which ends when the stream is destroyed and has nothing left to do.
struct FakeStream {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::function<void()>> work;
  bool destroyed = false;
  bool started = false;
  std::atomic<bool> capturing{false};
  std::atomic<unsigned long long> capture{0};  // its number
};

using UserObjectOfFake = std::pair<void (*)(void*), void*>;

void run(const std::shared_ptr<FakeStream>& stream) {
  std::unique_lock lock(stream->mutex);
  for (;;) {
    stream->changed.wait(lock, [&] { return stream->destroyed || !stream->work.empty(); });
    if (stream->work.empty()) return;
    auto work = std::move(stream->work.front());
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
    stream->work.pop_front();
  }
}

void enqueue(const std::shared_ptr<FakeStream>& stream, std::function<void()> work) {
  const std::lock_guard lock(stream->mutex);
  stream->work.push_back(std::move(work));
  if (!stream->started) {
    stream->started = true;
    std::thread(run, stream).detach();
  }
  stream->changed.notify_all();
}

/// An event is a counter of how often it was recorded, and how many of these the streams passed.
struct FakeEvent {
  std::mutex mutex;
  std::condition_variable changed;
  long recorded = 0, passed = 0;
};

constexpr auto kOutOfMemory = static_cast<CudaResult>(2);
constexpr auto kCaptureUnsupported = static_cast<CudaResult>(900);

struct World {
  std::mutex mutex;
  std::map<void*, std::shared_ptr<FakeStream>> streams;
  std::map<int, std::shared_ptr<FakeStream>> null_streams;
  std::map<void*, std::shared_ptr<FakeEvent>> events;
  std::vector<UserObjectOfFake> of_graphs;
  unsigned long long captures = 0;
  std::atomic<long> queries{0}, switches{0}, allocations{0};
  std::atomic<long> under_way{0};  // captures
  std::atomic<bool> strict_captures{false};
  std::atomic<int> next_query{0};
};
World& world() {
  static auto* const world = new World;  // streams may outlive main
  return *world;
}
thread_local int current_device = 0;
thread_local CaptureMode capture_mode = CaptureMode::kGlobal;

std::shared_ptr<FakeStream> stream_of(CudaStream handle) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (handle != nullptr) return w.streams.at(handle);
  auto& stream = w.null_streams[current_device];
  if (stream == nullptr) stream = std::make_shared<FakeStream>();
  return stream;
}

std::shared_ptr<FakeEvent> event_of(CudaEvent handle) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  return w.events.at(handle);
}

CudaResult runtime_version(int* version) {
  *version = 13000;
  return CudaResult::kSuccess;
}
const char* error_string(CudaResult) { return "an error of the fake"; }
thread_local CudaResult last_error = CudaResult::kSuccess;
CudaResult get_last_error() { return std::exchange(last_error, CudaResult::kSuccess); }
CudaResult noted(CudaResult result) {
  if (result != CudaResult::kSuccess) last_error = result;
  return result;
}
CudaResult get_device(int* device) {
  *device = current_device;
  return CudaResult::kSuccess;
}
CudaResult set_device(int device) {
  ++world().switches;
  current_device = device;
  return CudaResult::kSuccess;
}
CudaResult stream_create(CudaStream* handle, unsigned, int) {
  World& w = world();
  auto stream = std::make_shared<FakeStream>();
  *handle = reinterpret_cast<CudaStream>(stream.get());
  const std::lock_guard lock(w.mutex);
  w.streams[stream.get()] = stream;
  return CudaResult::kSuccess;
}
CudaResult stream_destroy(CudaStream handle) {
  World& w = world();
  std::shared_ptr<FakeStream> stream;
  {
    const std::lock_guard lock(w.mutex);
    stream = w.streams.at(handle);
    w.streams.erase(handle);
  }
  const std::lock_guard lock(stream->mutex);
  stream->destroyed = true;
  stream->changed.notify_all();
  return CudaResult::kSuccess;
}
CudaResult stream_is_capturing(CudaStream handle, CaptureStatus* status) {
  *status = stream_of(handle)->capturing ? CaptureStatus::kActive : CaptureStatus::kNone;
  return CudaResult::kSuccess;
}
CudaResult exchange_capture_mode(CaptureMode* mode) {
  std::swap(capture_mode, *mode);
  return CudaResult::kSuccess;
}
CudaResult event_create(CudaEvent* handle, unsigned) {
  World& w = world();
  auto event = std::make_shared<FakeEvent>();
  *handle = reinterpret_cast<CudaEvent>(event.get());
  const std::lock_guard lock(w.mutex);
  w.events[event.get()] = event;
  return CudaResult::kSuccess;
}
CudaResult event_destroy(CudaEvent handle) {
  World& w = world();
  const std::lock_guard lock(w.mutex);
  w.events.erase(handle);
  return CudaResult::kSuccess;
}
CudaResult event_record(CudaEvent handle, CudaStream stream) {
  const auto event = event_of(handle);
  long number = 0;
  {
    const std::lock_guard lock(event->mutex);
    number = ++event->recorded;
  }
  enqueue(stream_of(stream), [event, number] {
    const std::lock_guard lock(event->mutex);
    event->passed = std::max(event->passed, number);
    event->changed.notify_all();
  });
  return CudaResult::kSuccess;
}
CudaResult stream_wait_event(CudaStream stream, CudaEvent handle, unsigned) {
  const auto event = event_of(handle);
  long number = 0;
  {
    const std::lock_guard lock(event->mutex);
    number = event->recorded;
  }
  enqueue(stream_of(stream), [event, number] {
    std::unique_lock lock(event->mutex);
    event->changed.wait(lock, [&] { return event->passed >= number; });
  });
  return CudaResult::kSuccess;
}
CudaResult event_query(CudaEvent handle) {
  ++world().queries;
  // It would end the capture, whoever's it is.
  if (world().strict_captures && world().under_way > 0 && capture_mode != CaptureMode::kRelaxed)
    return kCaptureUnsupported;
  if (const int failure = world().next_query.exchange(0)) return static_cast<CudaResult>(failure);
  const auto event = event_of(handle);
  const std::lock_guard lock(event->mutex);
  return event->passed >= event->recorded ? CudaResult::kSuccess : CudaResult::kNotReady;
}
CudaResult memcpy_async(void* to, const void* from, std::size_t bytes, CopyKind,
                        CudaStream stream) {
  enqueue(stream_of(stream), [=] { std::memmove(to, from, bytes); });
  return CudaResult::kSuccess;
}
CudaResult malloc_async(void** data, std::size_t bytes, CudaStream) {
  *data = allocate_memory(bytes);
  if (*data == nullptr) return kOutOfMemory;
  ++world().allocations;
  return CudaResult::kSuccess;
}
CudaResult free_async(void* data, CudaStream stream) {
  enqueue(stream_of(stream), [data] {
    free_memory(data);
    --world().allocations;
  });
  return CudaResult::kSuccess;
}
CudaResult malloc(void** data, std::size_t bytes) {
  *data = allocate_memory(bytes);
  return noted(*data == nullptr ? kOutOfMemory : CudaResult::kSuccess);
}
CudaResult free(void* data) {
  free_memory(data);
  return CudaResult::kSuccess;
}
CudaResult host_alloc(void** data, std::size_t bytes, unsigned) {
  *data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  return *data == nullptr ? kOutOfMemory : CudaResult::kSuccess;
}
CudaResult ipc_open(void** data, IpcHandle handle, unsigned) {
  return noted(ipc_open_handle(data, handle, current_device));
}
CudaResult driver_entry(const char* symbol, void** function, unsigned, unsigned long long, int*) {
  const bool known = std::string(symbol) == "cuPointerGetAttributes";
  *function = known ? reinterpret_cast<void*>(&pointer_attributes) : nullptr;
  return CudaResult::kSuccess;
}

CudaResult capture_info(CudaStream handle, CaptureStatus* status, unsigned long long* id,
                        CudaGraph* graph, const void*, const void*, std::size_t*) {
  const auto stream = stream_of(handle);
  stream_is_capturing(handle, status);
  *id = stream->capture;
  *graph = nullptr;
  return CudaResult::kSuccess;
}
CudaResult user_object_create(CudaUserObject* object, void* data, void (*destroy)(void*), unsigned,
                              unsigned) {
  *object = reinterpret_cast<CudaUserObject>(new UserObjectOfFake(destroy, data));
  return CudaResult::kSuccess;
}
CudaResult graph_retain_user_object(CudaGraph, CudaUserObject object, unsigned, unsigned) {
  const std::unique_ptr<UserObjectOfFake> mine(reinterpret_cast<UserObjectOfFake*>(object));
  World& w = world();
  const std::lock_guard lock(w.mutex);
  w.of_graphs.push_back(*mine);
  return CudaResult::kSuccess;
}

void pack(std::span<const PackedBlock> from, std::byte* to, CudaStream stream) {
  enqueue(stream_of(stream), [list = std::vector(from.begin(), from.end()), to] {
    for (const auto& [block, offset] : list)
      for (std::size_t run = 0; run < block.runs; ++run)
        std::memcpy(to + offset + run * block.run_bytes, block.data + run * block.run_stride,
                    block.run_bytes);
  });
}
void unpack(const std::byte* from, std::span<const PackedBlock> to, CudaStream stream) {
  enqueue(stream_of(stream), [list = std::vector(to.begin(), to.end()), from] {
    for (const auto& [block, offset] : list)
      for (std::size_t run = 0; run < block.runs; ++run)
        std::memcpy(block.data + run * block.run_stride, from + offset + run * block.run_bytes,
                    block.run_bytes);
  });
}

}  // namespace

nccl::CudaApi fake_cuda() {
  nccl::CudaApi api;
  api.runtime_version = runtime_version;
  api.get_error_string = error_string;
  api.get_last_error = get_last_error;
  api.get_device = get_device;
  api.set_device = set_device;
  api.stream_create = stream_create;
  api.stream_destroy = stream_destroy;
  api.stream_wait_event = stream_wait_event;
  api.stream_is_capturing = stream_is_capturing;
  api.exchange_capture_mode = exchange_capture_mode;
  api.event_create = event_create;
  api.event_destroy = event_destroy;
  api.event_record = event_record;
  api.event_query = event_query;
  api.memcpy_async = memcpy_async;
  api.malloc_async = malloc_async;
  api.free_async = free_async;
  api.malloc = malloc;
  api.free = free;
  api.host_alloc = host_alloc;
  api.ipc_get_handle = [](IpcHandle* handle, void* data) {
    return noted(ipc_get_handle(handle, data));
  };
  api.ipc_open_handle = ipc_open;
  api.ipc_close_handle = [](void* data) { return noted(ipc_close_handle(data, current_device)); };
  api.driver_entry = driver_entry;
  api.capture_info = capture_info;
  api.user_object_create = user_object_create;
  api.graph_retain_user_object = graph_retain_user_object;
  api.version = 13000;
  api.path = "the fake CUDA runtime";
  return api;
}

nccl::BlockKernels fake_kernels() { return {pack, unpack}; }

void enqueue_on(nccl::CudaStream stream, std::function<void()> work) {
  enqueue(stream_of(stream), std::move(work));
}

void set_capturing(nccl::CudaStream stream, bool capturing) {
  const auto found = stream_of(stream);
  World& w = world();
  const std::lock_guard lock(w.mutex);
  if (capturing) found->capture = ++w.captures;
  if (found->capturing.exchange(capturing) != capturing) w.under_way += capturing ? 1 : -1;
}

void set_strict_captures(bool strict) { world().strict_captures = strict; }

void destroy_graphs() {
  World& w = world();
  std::vector<UserObjectOfFake> objects;
  {
    const std::lock_guard lock(w.mutex);
    objects.swap(w.of_graphs);
  }
  for (const auto& [destroy, data] : objects) destroy(data);
}

long event_queries() { return world().queries; }
long device_switches() { return world().switches; }
long allocations() { return world().allocations; }
void fail_next_query(nccl::CudaResult result) { world().next_query = static_cast<int>(result); }

}  // namespace fvd::test
