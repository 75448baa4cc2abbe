#include "shm/ring_memory.h"

#include <sys/random.h>

#include <cerrno>
#include <cstring>
#include <new>

#include "comm/error.h"

namespace fvd::shm {
namespace {

ForeignNames names_of(const RingAddress& address) {
  return {text("queue \"", address.name, "\""), "its writer",
          "readers of other hosts come by create_from_process_group"};
}

}  // namespace

std::shared_ptr<RingMemory> RingMemory::create(const RingOptions& options) {
  FVD_CHECK(options.readers >= 1 && options.readers <= kMaxRanks, kInvalidArgument, "queue \"",
            options.name, "\": ", options.readers, " readers; there may be 1 to ", kMaxRanks);
  const RingLayout layout{options.slots, options.slot_bytes};
  FVD_CHECK(layout.valid(), kInvalidArgument, "queue \"", options.name, "\": ", options.slots,
            " chunks of ", options.slot_bytes, " bytes; there may be 1 to ", RingLayout::kMostSlots,
            " chunks of ", RingLayout::kLeastSlotBytes, " bytes and more, ",
            RingLayout::kMostDataBytes, " bytes in all");
  std::shared_ptr<RingMemory> memory(new RingMemory);
  memory->data_ = Segment::create("fastvideo_dist-ring", layout.data_bytes(), options.kind);
  memory->control_ =
      Segment::create("fastvideo_dist-ring-control", RingLayout::control_bytes(), options.kind);
  memory->data_.reserve(0, kPageBytes);
  memory->control_.reserve(0, RingLayout::control_bytes());

  RingAddress& address = memory->address_;
  static_cast<ProcessAddress&>(address) = ProcessAddress::own();
  const auto random = getrandom(address.id.data(), sizeof(address.id), 0);
  FVD_SYS_CHECK(random == static_cast<ssize_t>(sizeof(address.id)) ? 0 : -1, "getrandom");
  address.readers = options.readers;
  address.slots = options.slots;
  address.slot_bytes = options.slot_bytes;
  address.data_fd = static_cast<std::uint64_t>(memory->data_.fd());
  address.control_fd = static_cast<std::uint64_t>(memory->control_.fd());
  address.name = options.name;

  RingHead& head = *new (memory->data_.data()) RingHead{};
  std::memcpy(head.magic, kRingMagic, sizeof(kRingMagic));
  head.id = address.id;
  head.readers = options.readers;
  head.slots = options.slots;
  head.slot_bytes = options.slot_bytes;
  new (memory->control_.data()) RingControl{};
  memory->data_.seal(true);
  memory->control_.seal(false);
  return memory;
}

std::shared_ptr<RingMemory> RingMemory::attach(const RingAddress& address) {
  const ForeignNames names = names_of(address);
  check_reachable(address, names);
  std::shared_ptr<RingMemory> memory(new RingMemory);
  memory->address_ = address;
  memory->data_ =
      attach_foreign(address, address.data_fd, address.layout().data_bytes(), false, names);
  memory->control_ =
      attach_foreign(address, address.control_fd, RingLayout::control_bytes(), true, names);
  const RingHead& head = memory->head();
  const bool same = std::memcmp(head.magic, kRingMagic, sizeof(kRingMagic)) == 0 &&
                    head.id == address.id && head.readers == address.readers &&
                    head.slots == address.slots && head.slot_bytes == address.slot_bytes;
  FVD_CHECK(same, kPeerLost, "queue \"", address.name, "\": process ", address.pid,
            " has closed it; its descriptor ", address.data_fd, " is something else by now");
  return memory;
}

}  // namespace fvd::shm
