// A ring's address as bytes. They come out of a handle somebody sent: parsed whole or refused.
#include <cstring>

#include "comm/error.h"
#include "shm/ring_memory.h"
#include "shm/serial.h"

namespace fvd::shm {
namespace {

// Changes with RingAddress, and whenever RingHead, RingSlot, RingControl or a word in them does.
constexpr char kAddressMagic[] = "fvd-ring-address-1";
constexpr std::uint64_t kMostText = 256;

}  // namespace

std::string RingAddress::serialize() const {
  std::string out(kAddressMagic, sizeof(kAddressMagic));
  put(out, boot_id);
  put(out, name.substr(0, kMostText));
  for (std::uint64_t value : {pid_namespace, uid, pid, start_time, id[0], id[1], readers, slots,
                              slot_bytes, data_fd, control_fd}) {
    put(out, value);
  }
  return out;
}

RingAddress RingAddress::parse(const std::string& bytes) {
  FVD_CHECK(bytes.size() >= sizeof(kAddressMagic) &&
                std::memcmp(bytes.data(), kAddressMagic, sizeof(kAddressMagic)) == 0,
            kInvalidArgument, "this handle is of another version of fastvideo_dist than ",
            kAddressMagic, "; writer and readers need the same");
  RingAddress address;
  SerialReader reader{bytes, sizeof(kAddressMagic)};
  bool ok = reader.get(address.boot_id, kMostText) && reader.get(address.name, kMostText);
  for (std::uint64_t* value :
       {&address.pid_namespace, &address.uid, &address.pid, &address.start_time, &address.id[0],
        &address.id[1], &address.readers, &address.slots, &address.slot_bytes, &address.data_fd,
        &address.control_fd}) {
    ok = ok && reader.get(*value);
  }
  // Sizes that could not be of a real ring would let an offset wrap around.
  ok = ok && reader.at == bytes.size() && address.layout().valid() && address.readers >= 1 &&
       address.readers <= kMaxRanks && address.data_fd < kMostDescriptor &&
       address.control_fd < kMostDescriptor;
  FVD_CHECK(ok, kInvalidArgument, "this queue handle is malformed: ", bytes.size(), " bytes");
  return address;
}

}  // namespace fvd::shm
