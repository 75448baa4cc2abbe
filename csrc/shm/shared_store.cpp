#include "shm/shared_store.h"

#include <pthread.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <ctime>
#include <iomanip>
#include <new>
#include <thread>

#include "comm/error.h"

namespace fvd::shm {
namespace {

// Changes with SharedStoreAddress and whenever Head or Record does.
constexpr char kStoreMagic[16] = "fvd-meeting-1";
constexpr std::size_t kAlign = 8;
constexpr int kLockSeconds = 10;  // a call holds it for microseconds
// Between two looks at the store; the first is short, as ranks come together more often than not.
constexpr std::chrono::microseconds kShortestPause{50};
constexpr std::chrono::microseconds kLongestPause{5000};

std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

std::string SharedStoreAddress::name() const {
  std::ostringstream out;
  out << "nccl-" << std::hex << std::setw(8) << std::setfill('0') << (id[0] & 0xffffffffU);
  return out.str();
}

std::string SharedStoreAddress::serialize() const {
  return {reinterpret_cast<const char*>(this), sizeof(*this)};
}

SharedStoreAddress SharedStoreAddress::parse(const std::string& bytes) {
  SharedStoreAddress address{};
  FVD_CHECK(bytes.size() == sizeof(address), kInvalidArgument, "a unique id has ", sizeof(address),
            " bytes, these are ", bytes.size());
  std::memcpy(&address, bytes.data(), sizeof(address));
  const bool ours = std::memcmp(address.magic, kStoreMagic, sizeof(kStoreMagic)) == 0;
  FVD_CHECK(ours && address.boot_id[sizeof(address.boot_id) - 1] == 0 &&
                address.fd < kMostDescriptor && address.pid != 0,
            kInvalidArgument,
            "these 128 bytes are no unique id of this version of fastvideo_dist (", kStoreMagic,
            "); take them from get_unique_id() of one rank");
  return address;
}

/// At the beginning of the segment; the records follow without gaps up to `end`.
struct SharedStore::Head {
  char magic[16];
  std::uint64_t id[2];
  pthread_mutex_t mutex;  // robust, shared; guards all that follows
  std::uint64_t end;      // offset behind the last record
};

/// A key, then its value, then unused bytes up to the next record. A removed one has no key.
struct SharedStore::Record {
  std::uint32_t key_bytes;
  std::uint32_t value_bytes;
  std::uint64_t stride;  // to the next record

  char* text() { return reinterpret_cast<char*>(this + 1); }
  std::string_view key() { return {text(), key_bytes}; }
  std::string_view value() { return {text() + key_bytes, value_bytes}; }
};

/// The memory belongs to this thread while one of these lives.
class SharedStore::Lock {
 public:
  explicit Lock(const SharedStore& store) : mutex_(store.head().mutex) {
    FVD_CHECK(store.owner_ == getpid(), kAborted, "the place where the ranks of ",
              store.address_.name(), " meet belongs to the parent of this forked process");
    timespec until{};
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += kLockSeconds;
    const int status = pthread_mutex_timedlock(&mutex_, &until);
    if (status == 0) return;
    if (status == EOWNERDEAD) pthread_mutex_unlock(&mutex_);  // from now on ENOTRECOVERABLE
    const bool dead = status == EOWNERDEAD || status == ENOTRECOVERABLE;
    throw Error(Kind::kSystem,
                text("the place where the ranks of ", store.address_.name(), " meet ",
                     dead ? "was left half written by a process that died; get a new unique id"
                          : text("could not be used for ", kLockSeconds, " s: ", errno_text(status),
                                 ". Is a rank stopped?")));
  }
  ~Lock() { pthread_mutex_unlock(&mutex_); }
  Lock(const Lock&) = delete;

 private:
  pthread_mutex_t& mutex_;
};

SharedStore::SharedStore(Segment segment, const SharedStoreAddress& address)
    : segment_(std::move(segment)), address_(address), owner_(getpid()) {}

SharedStore::Head& SharedStore::head() const noexcept {
  return *reinterpret_cast<Head*>(segment_.data());
}

std::shared_ptr<SharedStore> SharedStore::create(SegmentKind kind) {
  auto segment = Segment::create("fastvideo_dist-meeting", kBytes, kind);
  segment.reserve(0, kBytes);
  const auto process = ProcessAddress::own();
  SharedStoreAddress address{};
  std::memcpy(address.magic, kStoreMagic, sizeof(kStoreMagic));
  FVD_CHECK(process.boot_id.size() < sizeof(address.boot_id), kSystem, "the boot id ",
            process.boot_id, " has ", process.boot_id.size(), " characters; expected fewer than ",
            sizeof(address.boot_id));
  std::memcpy(address.boot_id, process.boot_id.data(), process.boot_id.size());
  address.pid_namespace = process.pid_namespace;
  address.uid = process.uid;
  address.pid = process.pid;
  address.start_time = process.start_time;
  address.fd = static_cast<std::uint64_t>(segment.fd());
  const auto random = getrandom(address.id, sizeof(address.id), 0);
  FVD_SYS_CHECK(random == static_cast<ssize_t>(sizeof(address.id)) ? 0 : -1, "getrandom");

  Head& head = *new (segment.data()) Head{};
  std::memcpy(head.magic, kStoreMagic, sizeof(kStoreMagic));
  std::memcpy(head.id, address.id, sizeof(head.id));
  head.end = aligned(sizeof(Head));
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&head.mutex, &attributes);
  pthread_mutexattr_destroy(&attributes);
  segment.seal(false);
  return std::shared_ptr<SharedStore>(new SharedStore(std::move(segment), address));
}

std::shared_ptr<SharedStore> SharedStore::attach(const SharedStoreAddress& address) {
  const ForeignNames names{text("unique id ", address.name()), "the process that made it",
                           "all ranks must run on one host"};
  const auto process = address.process();
  check_reachable(process, names);
  auto segment = attach_foreign(process, address.fd, kBytes, true, names);
  const Head& head = *reinterpret_cast<const Head*>(segment.data());
  FVD_CHECK(std::memcmp(head.magic, kStoreMagic, sizeof(kStoreMagic)) == 0 &&
                std::memcmp(head.id, address.id, sizeof(head.id)) == 0,
            kPeerLost, names.what, ": process ", address.pid, " has closed it; its descriptor ",
            address.fd, " is something else by now");
  return std::shared_ptr<SharedStore>(new SharedStore(std::move(segment), address));
}

/// The record at `offset`, which lies wholly inside the memory.
SharedStore::Record* SharedStore::at(std::size_t offset) const {
  auto* record = reinterpret_cast<Record*>(segment_.data() + offset);
  const std::size_t end = head().end;
  const bool inside =
      end <= kBytes && offset % kAlign == 0 && offset + sizeof(Record) <= end &&
      record->stride >= sizeof(Record) && record->stride <= end - offset &&
      std::size_t{record->key_bytes} + record->value_bytes <= record->stride - sizeof(Record);
  FVD_CHECK(inside, kSystem, "the place where the ranks of ", address_.name(),
            " meet is damaged at byte ", offset, "; get a new unique id");
  return record;
}

SharedStore::Record* SharedStore::find(std::string_view key) const {
  for (std::size_t offset = aligned(sizeof(Head)); offset < head().end;) {
    Record* record = at(offset);
    if (record->key() == key) return record;
    offset += record->stride;
  }
  return nullptr;
}

/// Moves what is left of the records to the front.
void SharedStore::compact() const {
  std::size_t to = aligned(sizeof(Head));
  for (std::size_t from = to; from < head().end;) {
    Record* record = at(from);
    const std::size_t stride = record->stride;
    if (record->key_bytes != 0) {
      std::memmove(segment_.data() + to, record, stride);
      to += stride;
    }
    from += stride;
  }
  head().end = to;
}

void SharedStore::put(std::string_view key, std::string_view value) {
  if (Record* old = find(key)) {
    if (key.size() + value.size() <= old->stride - sizeof(Record)) {
      std::memcpy(old->text() + key.size(), value.data(), value.size());
      old->value_bytes = static_cast<std::uint32_t>(value.size());
      return;
    }
    old->key_bytes = old->value_bytes = 0;
  }
  const std::size_t stride = aligned(sizeof(Record) + key.size() + value.size());
  if (head().end > kBytes || stride > kBytes - head().end) compact();
  FVD_CHECK(stride <= kBytes - head().end, kSystem, "the place where the ranks of ",
            address_.name(), " meet is full: ", head().end, " of ", kBytes, " bytes are used, \"",
            key, "\" needs ", stride);
  auto* record = reinterpret_cast<Record*>(segment_.data() + head().end);
  record->key_bytes = static_cast<std::uint32_t>(key.size());
  record->value_bytes = static_cast<std::uint32_t>(value.size());
  record->stride = stride;
  std::memcpy(record->text(), key.data(), key.size());
  std::memcpy(record->text() + key.size(), value.data(), value.size());
  head().end += stride;
}

void SharedStore::set(const std::string& key, const std::string& value) {
  const Lock lock(*this);
  put(key, value);
}

bool SharedStore::has(const std::string& key) {
  const Lock lock(*this);
  return find(key) != nullptr;
}

std::int64_t SharedStore::add(const std::string& key, std::int64_t amount) {
  const Lock lock(*this);
  std::int64_t sum = 0;
  if (Record* record = find(key)) {
    const auto value = record->value();
    std::from_chars(value.data(), value.data() + value.size(), sum);
  }
  sum += amount;
  put(key, std::to_string(sum));
  return sum;
}

void SharedStore::remove(const std::string& key) {
  const Lock lock(*this);
  if (Record* record = find(key)) record->key_bytes = record->value_bytes = 0;
}

std::vector<std::string> SharedStore::wait_for(const std::vector<std::string>& keys,
                                               std::chrono::milliseconds timeout) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + timeout;
  for (auto pause = kShortestPause;; pause = std::min(2 * pause, kLongestPause)) {
    std::vector<std::string> values;
    std::string missing;
    {
      const Lock lock(*this);
      for (const auto& key : keys) {
        if (Record* record = find(key)) {
          values.emplace_back(record->value());
        } else {
          missing += text(missing.empty() ? "\"" : ", \"", key, "\"");
        }
      }
    }
    if (missing.empty()) return values;
    FVD_CHECK(Clock::now() < deadline, kTimeout, "waited ", timeout.count(),
              " ms for the other ranks; missing in the store: ", missing);
    std::this_thread::sleep_for(pause);
  }
}

}  // namespace fvd::shm
