// A ring's address as bytes. They come out of a handle somebody sent: parsed whole or refused.
#include <cstring>

#include "comm/error.h"
#include "shm/ring_memory.h"

namespace fvd::shm {
namespace {

// Changes with RingAddress, and whenever RingHead, RingSlot, RingControl or a word in them does.
constexpr char kMagic[] = "fvd-ring-address-1";
constexpr std::uint64_t kMostText = 256;
constexpr std::uint64_t kMostDescriptor = 1 << 30;

void put(std::string& out, std::uint64_t value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void put(std::string& out, const std::string& value) {
  put(out, value.size());
  out += value;
}

bool get(const std::string& bytes, std::size_t& at, std::uint64_t& value) {
  if (bytes.size() - at < sizeof(value)) return false;
  std::memcpy(&value, bytes.data() + at, sizeof(value));
  at += sizeof(value);
  return true;
}

bool get(const std::string& bytes, std::size_t& at, std::string& value) {
  std::uint64_t length = 0;
  if (!get(bytes, at, length) || length > kMostText || bytes.size() - at < length) return false;
  value = bytes.substr(at, length);
  at += length;
  return true;
}

}  // namespace

std::string RingAddress::serialize() const {
  std::string out(kMagic, sizeof(kMagic));
  put(out, boot_id);
  put(out, name.substr(0, kMostText));
  for (std::uint64_t value : {pid_namespace, uid, pid, start_time, id[0], id[1], readers, slots,
                              slot_bytes, data_fd, control_fd}) {
    put(out, value);
  }
  return out;
}

RingAddress RingAddress::parse(const std::string& bytes) {
  FVD_CHECK(
      bytes.size() >= sizeof(kMagic) && std::memcmp(bytes.data(), kMagic, sizeof(kMagic)) == 0,
      kInvalidArgument, "this handle is of another version of fastvideo_dist than ", kMagic,
      "; writer and readers need the same");
  RingAddress address;
  std::size_t at = sizeof(kMagic);
  bool ok = get(bytes, at, address.boot_id) && get(bytes, at, address.name);
  for (std::uint64_t* value :
       {&address.pid_namespace, &address.uid, &address.pid, &address.start_time, &address.id[0],
        &address.id[1], &address.readers, &address.slots, &address.slot_bytes, &address.data_fd,
        &address.control_fd}) {
    ok = ok && get(bytes, at, *value);
  }
  // Sizes that could not be of a real ring would let an offset wrap around.
  ok = ok && at == bytes.size() && address.layout().valid() && address.readers >= 1 &&
       address.readers <= kMaxRanks && address.data_fd < kMostDescriptor &&
       address.control_fd < kMostDescriptor;
  FVD_CHECK(ok, kInvalidArgument, "this queue handle is malformed: ", bytes.size(), " bytes");
  return address;
}

}  // namespace fvd::shm
