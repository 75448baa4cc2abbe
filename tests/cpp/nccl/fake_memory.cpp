#include "nccl/fake_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

namespace fvd::test {
namespace {

using namespace fvd::nccl;

constexpr auto kInvalidValue = static_cast<CudaResult>(1);
constexpr auto kAlreadyMapped = static_cast<CudaResult>(208);
constexpr auto kNoPeerAccess = static_cast<CudaResult>(217);
constexpr auto kInvalidHandle = static_cast<CudaResult>(400);

struct Allocation {
  std::size_t bytes = 0;
  std::uint64_t id = 0;
  int file = -1;  // of what other processes may open
  bool shareable = true;
};

/// What a device has open. Ranks that are threads have a device each.
struct Mapped {
  void* data = nullptr;
  std::size_t bytes = 0;
  long count = 0;
  bool own = false;  // memory of this process
  std::uint64_t id = 0;
};
using MappedFrom = std::tuple<int, pid_t, std::uint64_t>;  // device, owner, address there

/// What a handle says.
struct Ticket {
  pid_t process;
  int file;
  std::uint64_t id;
  std::uint64_t bytes;
  std::uint64_t base;
};
static_assert(sizeof(Ticket) <= sizeof(IpcHandle));

struct Memory {
  std::mutex mutex;
  std::map<std::uintptr_t, Allocation> allocations;
  std::map<MappedFrom, Mapped> open;
  std::uint64_t last_id = 0;
  bool shared = false;
  int refused_device = -1;
  std::atomic<long> attempts{0};
};
Memory& memory() {
  static auto* const memory = new Memory;  // streams may outlive main
  return *memory;
}

/// Under the lock; the end if there is none.
auto find(Memory& m, std::uintptr_t address) {
  auto after = m.allocations.upper_bound(address);
  if (after == m.allocations.begin()) return m.allocations.end();
  --after;
  return address - after->first < after->second.bytes ? after : m.allocations.end();
}

void* map(int file, std::size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  return data == MAP_FAILED ? nullptr : data;
}

Mapped map_ticket(const Memory& m, const Ticket& ticket) {
  if (ticket.process == getpid()) {
    const auto found = m.allocations.find(ticket.base);
    if (found == m.allocations.end() || found->second.id != ticket.id) return {};
    return {reinterpret_cast<void*>(ticket.base), ticket.bytes, 0, true, ticket.id};
  }
  const std::string path =
      "/proc/" + std::to_string(ticket.process) + "/fd/" + std::to_string(ticket.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0) return {};
  void* const data = map(file, ticket.bytes);
  close(file);
  return {data, ticket.bytes, 0, false, ticket.id};
}

}  // namespace

void* allocate_memory(std::size_t bytes) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  Allocation made{std::max<std::size_t>(bytes, 1), ++m.last_id};
  void* data = nullptr;
  if (m.shared) {
    made.file = memfd_create("fake_gpu", MFD_CLOEXEC);
    if (made.file >= 0 && ftruncate(made.file, static_cast<off_t>(made.bytes)) == 0)
      data = map(made.file, made.bytes);
  } else {
    data = std::malloc(made.bytes);
  }
  if (data != nullptr) m.allocations[reinterpret_cast<std::uintptr_t>(data)] = made;
  return data;
}

void free_memory(void* data) {
  if (data == nullptr) return;
  Memory& m = memory();
  Allocation gone;
  {
    const std::lock_guard lock(m.mutex);
    const auto found = m.allocations.find(reinterpret_cast<std::uintptr_t>(data));
    if (found == m.allocations.end()) std::abort();
    gone = found->second;
    m.allocations.erase(found);
  }
  if (gone.file < 0) return std::free(data);
  munmap(data, gone.bytes);
  close(gone.file);
}

CudaResult ipc_get_handle(IpcHandle* handle, void* data) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  const auto found = find(m, reinterpret_cast<std::uintptr_t>(data));
  if (found == m.allocations.end() || !found->second.shareable) return kInvalidValue;
  const Ticket ticket{getpid(), found->second.file, found->second.id, found->second.bytes,
                      found->first};
  *handle = {};
  std::memcpy(handle->bytes, &ticket, sizeof(ticket));
  return CudaResult::kSuccess;
}

CudaResult ipc_open_handle(void** data, IpcHandle handle, int device) {
  Memory& m = memory();
  ++m.attempts;
  const std::lock_guard lock(m.mutex);
  if (m.refused_device == device) return kNoPeerAccess;
  Ticket ticket;
  std::memcpy(&ticket, handle.bytes, sizeof(ticket));
  Mapped& mapped = m.open[{device, ticket.process, ticket.base}];
  if (mapped.count > 0 && mapped.id != ticket.id) return kAlreadyMapped;
  if (mapped.count == 0) {
    mapped = map_ticket(m, ticket);
    if (mapped.data == nullptr) {
      m.open.erase({device, ticket.process, ticket.base});
      return kInvalidHandle;
    }
  }
  ++mapped.count;
  *data = mapped.data;
  return CudaResult::kSuccess;
}

CudaResult ipc_close_handle(void* data, int device) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  for (auto it = m.open.begin(); it != m.open.end(); ++it) {
    auto& [from, mapped] = *it;
    if (std::get<0>(from) != device || mapped.data != data) continue;
    if (--mapped.count > 0) return CudaResult::kSuccess;
    if (!mapped.own) munmap(data, mapped.bytes);
    m.open.erase(it);
    return CudaResult::kSuccess;
  }
  return kInvalidHandle;
}

CudaResult pointer_attributes(unsigned count, const PointerAttribute* which, void** values,
                              std::uintptr_t address) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  const auto found = find(m, address);
  if (found == m.allocations.end()) return CudaResult::kSuccess;
  for (unsigned i = 0; i < count; ++i) {
    const Allocation& allocation = found->second;
    std::uint64_t value = 0;
    if (which[i] == PointerAttribute::kBufferId) value = allocation.id;
    if (which[i] == PointerAttribute::kIpcCapable) value = allocation.shareable ? 1 : 0;
    if (which[i] == PointerAttribute::kRangeStart) value = found->first;
    if (which[i] == PointerAttribute::kRangeSize) value = allocation.bytes;
    std::memcpy(values[i], &value, sizeof(value));
  }
  return CudaResult::kSuccess;
}

void share_memory_between_processes() {
  const std::lock_guard lock(memory().mutex);
  memory().shared = true;
}

void set_shareable(void* data, bool shareable) {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  find(m, reinterpret_cast<std::uintptr_t>(data))->second.shareable = shareable;
}

void refuse_to_open_on(int device) {
  const std::lock_guard lock(memory().mutex);
  memory().refused_device = device;
}

long open_memory() {
  Memory& m = memory();
  const std::lock_guard lock(m.mutex);
  long count = 0;
  for (const auto& [from, mapped] : m.open) count += mapped.count;
  return count;
}

long attempts_to_open() { return memory().attempts; }

}  // namespace fvd::test
