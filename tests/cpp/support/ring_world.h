// A ring whose ends are in one process, over one mapping, and messages for it.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "shm/ring.h"
#include "support/thread_ranks.h"

namespace fvd::test {

inline constexpr std::chrono::microseconds kSpin{20};
inline constexpr std::uint64_t kSlotBytes = 256;

inline shm::RingCall within(std::chrono::milliseconds time) {
  return {shm::Clock::now() + time, nullptr};
}
inline shm::RingCall soon() { return within(std::chrono::milliseconds(kSanitized ? 100 : 20)); }
inline shm::RingCall in_time() { return within(std::chrono::seconds(60)); }

using Message = std::vector<std::string>;

/// Parts that tell which message they are of.
inline Message message(std::uint32_t number, const std::vector<std::size_t>& lengths) {
  std::mt19937 random(number);
  Message parts;
  for (const std::size_t length : lengths) {
    std::string part(length, '\0');
    for (char& c : part) c = static_cast<char>(random());
    parts.push_back(std::move(part));
  }
  return parts;
}

inline void write(shm::RingWriter& writer, const Message& parts, const shm::RingCall& call) {
  std::vector<std::span<const std::byte>> spans;
  for (const std::string& part : parts) spans.push_back(std::as_bytes(std::span(part)));
  writer.write(spans, call);
}

inline Message read(shm::RingReader& reader, const shm::RingCall& call) {
  Message parts;
  for (const shm::RingPart& part : reader.read(call)) {
    parts.emplace_back(reinterpret_cast<const char*>(part.data.get()), part.bytes);
  }
  return parts;
}

class Ring {
 public:
  explicit Ring(int readers, std::uint64_t slots = 4, std::uint64_t slot_bytes = kSlotBytes)
      : memory_(shm::RingMemory::create({"test", static_cast<std::uint64_t>(readers), slots,
                                         slot_bytes, shm::SegmentKind::kProcessLocal})),
        writer(memory_, kSpin) {
    for (int r = 0; r < readers; ++r) attach(r);
  }
  void attach(int number) {
    readers.push_back(std::make_unique<shm::RingReader>(memory_, number, kSpin));
  }
  shm::RingControl& control() { return memory_->control(); }

 private:
  std::shared_ptr<shm::RingMemory> memory_;

 public:
  shm::RingWriter writer;
  std::vector<std::unique_ptr<shm::RingReader>> readers;
};

}  // namespace fvd::test
