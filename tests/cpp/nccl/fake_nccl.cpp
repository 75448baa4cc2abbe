// over 400 lines because it stands for all of a library
#include "nccl/fake_nccl.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "nccl/fake_cuda.h"
#include "nccl/fake_post.h"
#include "nccl/fake_reduce.h"

namespace fvd::test {
namespace {

using namespace fvd::nccl;

struct FakeComm {
  std::string folder;
  int rank = 0, size = 1;
  std::atomic<bool> aborted{false}, finalizing{false};
  std::atomic<int> polls{0};
  std::mutex mutex;
  std::condition_variable changed;
  int running = 0;                     // kernels, so to say
  int enqueued = 0;                    // and those that have yet to run, too
  std::map<int, long> sent, received;  // numbers of messages, by peer
};

struct World {
  std::mutex mutex;
  std::string folder;
  FakeNcclFaults faults;
  std::vector<std::string> log;
  std::map<void*, std::shared_ptr<FakeComm>> comms;
  std::map<int, std::string> factors;  // of premultiplied sums, as they lie in memory
  int next_op = 100;
  long next_id = 0;
  std::atomic<int> open_groups{0};
};
World& world() {
  static auto* const world = new World;
  return *world;
}

FakeNcclFaults faults() {
  const std::lock_guard lock(world().mutex);
  return world().faults;
}
void note(const std::string& call) {
  const std::lock_guard lock(world().mutex);
  world().log.push_back(call);
}
std::shared_ptr<FakeComm> find(Comm handle) {
  const std::lock_guard lock(world().mutex);
  return world().comms.at(handle);
}

/// Thrown through a stream's work when its communicator is aborted.
struct Aborted {};

template <typename Ready>
void wait_until(const FakeComm& comm, Ready&& ready) {
  while (!ready()) {
    if (comm.aborted) throw Aborted{};
    post().wait_a_little();
  }
}

std::string name_of(const FakeComm& comm, int from, int to, long number) {
  return comm.folder + "/" + std::to_string(from) + "." + std::to_string(to) + "." +
         std::to_string(number);
}

/// Returns what is gone once the message has been received.
std::string put(FakeComm& comm, int to, const void* data, std::size_t bytes) {
  long number = 0;
  {
    const std::lock_guard lock(comm.mutex);
    number = comm.sent[to]++;
  }
  const std::string name = name_of(comm, comm.rank, to, number);
  post().put(name, {static_cast<const char*>(data), bytes});
  return name;
}

Bytes get(FakeComm& comm, int from) {
  long number = 0;
  {
    const std::lock_guard lock(comm.mutex);
    number = comm.received[from]++;
  }
  const std::string name = name_of(comm, from, comm.rank, number);
  wait_until(comm, [&] { return post().has(name); });
  return post().take(name);
}

/// One call of a group, in the three steps all of its calls take together: what it sends must be
/// under way before the first of them waits.
struct Step {
  std::function<std::vector<std::string>(FakeComm&)> send;
  std::function<void(FakeComm&)> receive;
  bool waits_for_receivers = false;
};

struct Pending {
  std::shared_ptr<FakeComm> comm;
  CudaStream stream;
  Step step;
};
thread_local int depth = 0;
thread_local std::vector<Pending> pending;

/// An abort returns when nothing runs any more, and what comes after it does nothing.
class Running {
 public:
  explicit Running(FakeComm& comm) : comm_(comm) {
    const std::lock_guard lock(comm_.mutex);
    if (comm_.aborted) throw Aborted{};
    ++comm_.running;
  }
  ~Running() {
    const std::lock_guard lock(comm_.mutex);
    --comm_.running;
    comm_.changed.notify_all();
  }
  Running(const Running&) = delete;

 private:
  FakeComm& comm_;
};

void run(const std::shared_ptr<FakeComm>& comm, const std::vector<Step>& steps) {
  struct Enqueued {
    FakeComm& comm;
    ~Enqueued() {
      const std::lock_guard lock(comm.mutex);
      --comm.enqueued;
    }
  } const enqueued{*comm};
  try {
    const Running running(*comm);
    if (faults().calls_hang) wait_until(*comm, [] { return false; });
    std::vector<std::string> sent;
    for (const Step& step : steps) {
      auto mine = step.send(*comm);
      if (step.waits_for_receivers) sent.insert(sent.end(), mine.begin(), mine.end());
    }
    for (const Step& step : steps) step.receive(*comm);
    for (const std::string& name : sent) wait_until(*comm, [&] { return !post().has(name); });
  } catch (const Aborted&) {  // the kernels return, whatever they had done
  }
}

void enqueue(const std::shared_ptr<FakeComm>& comm, CudaStream stream, std::vector<Step> steps) {
  {
    const std::lock_guard lock(comm->mutex);
    ++comm->enqueued;
  }
  enqueue_on(stream, [comm, steps = std::move(steps)] { run(comm, steps); });
}

Result submit(const std::string& name, Comm handle, CudaStream stream, Step step) {
  note(name);
  {
    World& w = world();
    const std::lock_guard lock(w.mutex);
    const Result wanted = std::exchange(w.faults.next_call, Result::kSuccess);
    if (wanted != Result::kSuccess) return wanted;
  }
  auto comm = find(handle);
  if (comm->aborted) return Result::kInvalidUsage;
  if (depth > 0) {
    pending.push_back({comm, stream, std::move(step)});
  } else {
    enqueue(comm, stream, {std::move(step)});
  }
  return Result::kSuccess;
}

Result group_start() {
  note("ncclGroupStart");
  ++depth;
  ++world().open_groups;
  return Result::kSuccess;
}

Result group_end() {
  note("ncclGroupEnd");
  --world().open_groups;
  if (--depth > 0) return Result::kSuccess;
  auto calls = std::exchange(pending, {});
  bool later = false;
  while (!calls.empty()) {
    const auto comm = calls.front().comm;
    const CudaStream stream = calls.front().stream;
    std::vector<Step> steps;
    for (auto& call : calls)
      if (call.comm == comm && call.stream == stream) steps.push_back(std::move(call.step));
    std::erase_if(calls,
                  [&](const Pending& call) { return call.comm == comm && call.stream == stream; });
    comm->polls = faults().group_polls;
    later = later || comm->polls > 0;
    enqueue(comm, stream, std::move(steps));
  }
  return later ? Result::kInProgress : Result::kSuccess;
}

/// An operation that was made for a call is a sum of what is multiplied first.
void reduce_with(const std::vector<Bytes>& in, void* out, std::size_t count, WireType type,
                 WireOp op) {
  const char* factor = nullptr;
  {
    const std::lock_guard lock(world().mutex);
    const auto made = world().factors.find(static_cast<int>(op));
    if (made != world().factors.end()) factor = made->second.data();
  }
  if (static_cast<int>(op) >= 100) op = WireOp::kSum;
  // Ranks that disagree on the count find no judge in NCCL.
  for (const auto& one : in) count = std::min(count, one.size() / size_of(type));
  reduce_all(in, static_cast<char*>(out), count, type, op, factor);
}

/// Every rank's `bytes` at `data` to every rank: what all collectives here are made of.
std::vector<std::string> tell_all(FakeComm& comm, const void* data, std::size_t bytes) {
  for (int peer = 0; peer < comm.size; ++peer)
    if (peer != comm.rank) put(comm, peer, data, bytes);
  return {};
}
std::vector<Bytes> hear_all(FakeComm& comm, const Bytes& mine) {
  std::vector<Bytes> all;
  for (int peer = 0; peer < comm.size; ++peer)
    all.push_back(peer == comm.rank ? mine : get(comm, peer));
  return all;
}
Bytes copy_of(const void* data, std::size_t bytes) {
  const auto* begin = static_cast<const char*>(data);
  return {begin, begin + bytes};
}

Result all_reduce(const void* in, void* out, std::size_t count, WireType type, WireOp op, Comm comm,
                  CudaStream stream) {
  const std::size_t bytes = count * size_of(type);
  return submit(
      "ncclAllReduce", comm, stream,
      {[=](FakeComm& c) { return tell_all(c, in, bytes); },
       [=](FakeComm& c) { reduce_with(hear_all(c, copy_of(in, bytes)), out, count, type, op); }});
}
Result reduce(const void* in, void* out, std::size_t count, WireType type, WireOp op, int root,
              Comm comm, CudaStream stream) {
  const std::size_t bytes = count * size_of(type);
  return submit("ncclReduce", comm, stream,
                {[=](FakeComm& c) { return tell_all(c, in, bytes); },
                 [=](FakeComm& c) {
                   const auto all = hear_all(c, copy_of(in, bytes));
                   if (c.rank == root) reduce_with(all, out, count, type, op);
                 }});
}
Result broadcast(const void* in, void* out, std::size_t count, WireType type, int root, Comm comm,
                 CudaStream stream) {
  const std::size_t bytes = count * size_of(type);
  return submit("ncclBroadcast", comm, stream,
                {[=](FakeComm& c) {
                   return c.rank == root ? tell_all(c, in, bytes) : std::vector<std::string>{};
                 },
                 [=](FakeComm& c) {
                   if (c.rank == root) return;
                   const Bytes got = get(c, root);
                   std::memcpy(out, got.data(), got.size());
                 }});
}
Result all_gather(const void* in, void* out, std::size_t count, WireType type, Comm comm,
                  CudaStream stream) {
  const std::size_t bytes = count * size_of(type);
  return submit("ncclAllGather", comm, stream,
                {[=](FakeComm& c) { return tell_all(c, in, bytes); },
                 [=](FakeComm& c) {
                   const auto all = hear_all(c, copy_of(in, bytes));
                   for (std::size_t r = 0; r < all.size(); ++r)
                     std::memcpy(static_cast<char*>(out) + r * bytes, all[r].data(), all[r].size());
                 }});
}
Result reduce_scatter(const void* in, void* out, std::size_t count, WireType type, WireOp op,
                      Comm comm, CudaStream stream) {
  const std::size_t bytes = count * size_of(type);
  return submit(
      "ncclReduceScatter", comm, stream,
      {[=](FakeComm& c) {
         for (int peer = 0; peer < c.size; ++peer)
           if (peer != c.rank)
             put(c, peer, static_cast<const char*>(in) + static_cast<std::size_t>(peer) * bytes,
                 bytes);
         return std::vector<std::string>{};
       },
       [=](FakeComm& c) {
         const auto* mine = static_cast<const char*>(in) + static_cast<std::size_t>(c.rank) * bytes;
         reduce_with(hear_all(c, copy_of(mine, bytes)), out, count, type, op);
       }});
}
Result send(const void* data, std::size_t count, WireType type, int peer, Comm comm,
            CudaStream stream) {
  const std::size_t bytes = count * size_of(type);
  return submit("ncclSend to " + std::to_string(peer), comm, stream,
                {[=](FakeComm& c) { return std::vector{put(c, peer, data, bytes)}; },
                 [](FakeComm&) {}, true});
}
Result recv(void* data, std::size_t count, WireType type, int peer, Comm comm, CudaStream stream) {
  const std::size_t bytes = count * size_of(type);
  return submit("ncclRecv from " + std::to_string(peer), comm, stream,
                {[](FakeComm&) { return std::vector<std::string>{}; },
                 [=](FakeComm& c) {
                   const Bytes got = get(c, peer);
                   std::memcpy(data, got.data(), std::min(bytes, got.size()));
                 }});
}

Result get_version(int* version) {
  *version = faults().version;
  return Result::kSuccess;
}
Result get_unique_id(UniqueId* id) {
  note("ncclGetUniqueId");
  World& w = world();
  const std::lock_guard lock(w.mutex);
  const std::string folder =
      w.folder + "/" + std::to_string(getpid()) + "." + std::to_string(w.next_id++);
  std::filesystem::create_directory(folder);
  *id = {};
  folder.copy(id->bytes, sizeof(id->bytes) - 1);
  return Result::kSuccess;
}
const char* get_error_string(Result) { return "an error of the fake"; }
const char* get_last_error(Comm) { return ""; }

Result comm_init(Comm* handle, int ranks, UniqueId id, int rank, CommConfig* config) {
  note("ncclCommInitRankConfig");
  if (config->blocking != 0 || config->magic != CommConfig::kMagic) return Result::kInvalidArgument;
  auto comm = std::make_shared<FakeComm>();
  comm->folder = id.bytes;
  comm->rank = rank;
  comm->size = ranks;
  comm->polls = faults().init_polls;
  *handle = reinterpret_cast<Comm>(comm.get());
  const std::lock_guard lock(world().mutex);
  world().comms[comm.get()] = comm;
  return Result::kInProgress;
}
Result comm_finalize(Comm handle) {
  note("ncclCommFinalize");
  find(handle)->finalizing = true;
  return faults().finalize_hangs ? Result::kInProgress : Result::kSuccess;
}
Result comm_destroy(Comm handle) {
  note("ncclCommDestroy");
  const std::lock_guard lock(world().mutex);
  world().comms.erase(handle);
  return Result::kSuccess;
}
Result comm_abort(Comm handle) {
  note("ncclCommAbort");
  const auto comm = find(handle);
  std::this_thread::sleep_for(std::chrono::milliseconds{faults().abort_ms});
  {
    std::unique_lock lock(comm->mutex);
    comm->aborted = true;
    comm->changed.wait(lock, [&] { return comm->running == 0; });
  }
  const std::lock_guard lock(world().mutex);
  world().comms.erase(handle);
  return Result::kSuccess;
}
Result get_async_error(Comm handle, Result* state) {
  const auto comm = find(handle);
  const auto f = faults();
  *state = Result::kSuccess;
  if (f.async_error_size == 0 || f.async_error_size == comm->size) *state = f.async_error;
  if (*state != Result::kSuccess) return Result::kSuccess;
  const bool waiting = comm->polls > 0 && comm->polls-- > 0;
  const std::lock_guard lock(comm->mutex);
  const bool leaving = comm->finalizing && (f.finalize_hangs || comm->enqueued > 0);
  if (waiting || f.init_hangs || leaving) *state = Result::kInProgress;
  return Result::kSuccess;
}
Result create_premul_sum(WireOp* op, void* factor, WireType type, ScalarResidence residence, Comm) {
  note("ncclRedOpCreatePreMulSum");
  if (residence != ScalarResidence::kHostImmediate) return Result::kInvalidArgument;
  World& w = world();
  const std::lock_guard lock(w.mutex);
  w.factors[w.next_op].assign(static_cast<const char*>(factor), size_of(type));
  *op = static_cast<WireOp>(w.next_op++);
  return Result::kSuccess;
}
Result destroy_op(WireOp, Comm) {
  note("ncclRedOpDestroy");  // the factor stays: numbers are not used again
  return Result::kSuccess;
}

}  // namespace

nccl::NcclApi fake_nccl(const std::string& folder, Between between) {
  {
    const std::lock_guard lock(world().mutex);
    world().folder = folder;
  }
  post().share(between);
  nccl::NcclApi api;
  api.get_version = get_version;
  api.get_unique_id = get_unique_id;
  api.get_error_string = get_error_string;
  api.get_last_error = get_last_error;
  api.comm_init_rank_config = comm_init;
  api.comm_finalize = comm_finalize;
  api.comm_destroy = comm_destroy;
  api.comm_abort = comm_abort;
  api.comm_get_async_error = get_async_error;
  api.group_start = group_start;
  api.group_end = group_end;
  api.all_reduce = all_reduce;
  api.reduce = reduce;
  api.broadcast = broadcast;
  api.all_gather = all_gather;
  api.reduce_scatter = reduce_scatter;
  api.send = send;
  api.recv = recv;
  api.create_premul_sum = create_premul_sum;
  api.destroy_op = destroy_op;
  api.version = faults().version;
  api.path = "the fake NCCL";
  return api;
}

void set_faults(const FakeNcclFaults& faults) {
  const std::lock_guard lock(world().mutex);
  world().faults = faults;
}

std::vector<std::string> take_log() {
  const std::lock_guard lock(world().mutex);
  return std::exchange(world().log, {});
}

int open_groups() { return world().open_groups; }

int live_communicators() {
  const std::lock_guard lock(world().mutex);
  return static_cast<int>(world().comms.size());
}

}  // namespace fvd::test
