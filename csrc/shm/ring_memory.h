// The two segments of a ring, and the way to them: what a process must be told to attach.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "shm/process_address.h"
#include "shm/ring_layout.h"
#include "shm/segment.h"

namespace fvd::shm {

/// Where a ring is: its writer's process and the numbers its descriptors have there. Travels as
/// bytes inside a handle.
struct RingAddress : ProcessAddress {
  RingId id{};
  std::uint64_t readers = 0;
  std::uint64_t slots = 0;
  std::uint64_t slot_bytes = 0;
  std::uint64_t data_fd = 0;
  std::uint64_t control_fd = 0;
  std::string name;  // for messages

  RingLayout layout() const { return {slots, slot_bytes}; }
  std::string serialize() const;

  /// @throws Error(kInvalidArgument) if `bytes` are not of this version of the library.
  static RingAddress parse(const std::string& bytes);
};

struct RingOptions {
  std::string name;  // for messages
  std::uint64_t readers = 1;
  std::uint64_t slots = 10;
  std::uint64_t slot_bytes = 24 << 20;  // address space; what is used is reserved as it is used
  SegmentKind kind = SegmentKind::kSealed;
};

/// Owns both mappings; shared by the ends of a ring in this process.
class RingMemory {
 public:
  /// The writer's. @throws Error(kInvalidArgument) for sizes, Error(kSystem)
  static std::shared_ptr<RingMemory> create(const RingOptions& options);

  /// A reader's: opens the two descriptors through /proc/<writer>/fd. No socket, no folder, no
  /// thread at the writer, hence nothing that could be left behind or connected to; the kernel
  /// grants it to processes of the same user (and root) only. That the memory is the ring in
  /// question is checked by its id, its owner, its seals and its size.
  /// @throws Error(kInvalidArgument) if the ring is on another host, in another PID namespace or of
  /// another user; Error(kPeerLost) if its writer has ended or closed it; Error(kSystem)
  static std::shared_ptr<RingMemory> attach(const RingAddress& address);

  RingMemory(const RingMemory&) = delete;

  const RingAddress& address() const noexcept { return address_; }
  RingLayout layout() const noexcept { return address_.layout(); }
  const RingHead& head() const noexcept { return *reinterpret_cast<const RingHead*>(data_.data()); }
  RingHead& own_head() noexcept { return *reinterpret_cast<RingHead*>(data_.data()); }
  const RingSlot& slot(std::uint64_t number) const noexcept {
    return *reinterpret_cast<const RingSlot*>(data_.data() + layout().slot_offset(number));
  }
  RingSlot& own_slot(std::uint64_t number) noexcept {
    return *reinterpret_cast<RingSlot*>(data_.data() + layout().slot_offset(number));
  }
  RingControl& control() noexcept { return *reinterpret_cast<RingControl*>(control_.data()); }
  Segment& data_segment() noexcept { return data_; }

 private:
  RingMemory() = default;

  RingAddress address_;
  Segment data_;
  Segment control_;
};

}  // namespace fvd::shm
