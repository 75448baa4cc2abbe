// What lanes.cpp and transfers.cpp share: a lane, and a transfer on it.
#pragma once

#include <deque>
#include <memory>
#include <string>

#include "nccl/lanes.h"

namespace fvd::nccl {

/// What the sender says of a message before it goes.
struct Announcement {
  std::uint64_t bytes = 0;
  std::int32_t tag = 0;
  std::int32_t type = 0;

  bool operator==(const Announcement&) const = default;
};

inline std::string words(const Announcement& message) {
  return text(message.bytes, " bytes of ", name(static_cast<DataType>(message.type)), " with tag ",
              message.tag);
}

struct Lanes::Lane {
  Lane(std::shared_ptr<Context> context, bool sends, int peer)
      : handle(std::move(context)), sends(sends), peer(peer) {}

  Handle handle;
  const bool sends;
  const int peer;
  CudaStream stream = nullptr;
  UniqueId id{};
  std::unique_ptr<Transfer> id_message;
  bool connected = false;
  bool failed = false;                      // nothing moves any more; whoever saw it ends the group
  std::deque<std::shared_ptr<Item>> queue;  // not launched, or being launched (the first)
};

struct Lanes::Item {
  enum class State { kQueued, kLaunching, kIssued };

  Item(const Context& context, bool sends) : staging(context, sends ? "send" : "recv") {}

  State state = State::kQueued;
  bool sends = false;
  int peer = 0;
  std::size_t bytes = 0;
  Record record;
  milliseconds timeout{0};
  bool captured = false;
  CudaEvent begin = nullptr, end = nullptr;  // on the caller's stream; on the lane's
  Staging staging;
  Staging::Place place;
  InFlight::Entry entry;
  Announcement mine, theirs;
  std::unique_ptr<Transfer> announcement;
  bool announced = false;
  bool finished = false;  // seen to be done on the device
  bool waited = false;    // a stream of the caller waits for it: he may drop it

  std::string title() const {
    return text(sends ? "send to" : "recv from", " rank ", peer, " (", words(mine), ")");
  }
};

}  // namespace fvd::nccl
