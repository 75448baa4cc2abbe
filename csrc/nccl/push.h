// How ranks write into each other's outputs: they agree on the host, and wait for each other on the
// device. See Communicator::push, and docs/nccl.md.
#pragma once

#include <array>
#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "nccl/control.h"
#include "nccl/in_flight.h"
#include "nccl/rank_pads.h"
#include "nccl/shared_memory.h"

namespace fvd::nccl {

/// One rank's side. Threads: abort() and missing() from any, the rest as collectives of a
/// Communicator; the device is the current one.
class Push {
 public:
  static constexpr std::size_t kMostOutputs = 16;

  /// A wait that is given up keeps its stream this long: by then the others have heard of it, and
  /// who was writing is done, so that memory is the caller's again when the stream goes on. No
  /// bound for a rank that was let in and whose process or device then stands still.
  static constexpr milliseconds kGrace{200};

  /// The device's clock has the first word in a call that takes too long, as it knows who is
  /// missing; the watchdog comes this much later.
  static constexpr milliseconds kDeviceFirst{300};

  Push(const Context& context, Control& control, EventPool& events)
      : context_(context),
        control_(control),
        events_(events),
        exporter_(context.cuda),
        pads_(context),
        mappings_(context) {}
  Push(const Push&) = delete;
  Push& operator=(const Push&) = delete;

  struct Agreed {
    std::string why_not;  // empty: it is to be done
    Reached reached;
  };

  /// Compares the call with those of all ranks and finds their outputs. Waits for all ranks, and
  /// nothing is enqueued. @throws Error(kMismatch), and what the control group throws
  Agreed agree(const Record& record, std::span<const Block> outputs, const Call& call);

  /// Enqueues the waits before and after what writes. @throws Error(kLibrary)
  void enter(CudaStream stream, milliseconds limit);
  void leave(CudaStream stream, milliseconds limit);

  /// Instead of leave: the others may have been let in, so the stream stands still until they have
  /// heard that nothing is to be written.
  void leave_after_failure(CudaStream stream, milliseconds limit) noexcept;

  /// For the entry in flight of the call between them: how the device tells that it gave it up.
  InFlight::GivenUp given_up() const { return {words()->report, number_ + 1}; }

  /// Who the device did not see come; to be asked once it has given up.
  std::string missing() const;

  /// Ends the waits that are under way on the device, and those to come.
  void abort() noexcept;

  /// After the last call. Whether the device is done with all, for which it waits.
  bool finish(milliseconds patience) noexcept;

  /// Then: cuts off what is not done, and lets go of the others' memory. False if it cut off
  /// something.
  bool close() noexcept;

 private:
  using Why = std::array<char, 200>;
  struct Offer {  // what a rank tells of a call
    Record record;
    std::uint32_t outputs = 0;
    std::uint32_t fresh = 0;  // some piece lies in an allocation that it has not told of before
    Why why{};                // why it cannot; empty if it can
    std::array<Shared, kMostOutputs> pieces{};  // of no size where an output is empty
  };

  HostWords* words() const { return words_.load(std::memory_order_acquire); }
  bool meet(const Call& call);
  void zero(RankPad* pad, const Call& call);
  Offer offer(const Record& record, std::span<const Block> outputs);
  std::string open_new(const std::vector<Offer>& offers, const Call& call);
  Agreed found(const std::vector<Offer>& offers);
  void wait(CudaStream stream, milliseconds limit, bool begins);
  bool device_done() const;
  void close_what_is_closable();
  void close_memory(const std::vector<void*>& list) noexcept;
  Mappings::Refusal compare(const Mappings::Refusal& mine, const Call& call);

  const Context& context_;
  Control& control_;
  EventPool& events_;
  Exporter exporter_;
  Mappings pads_;
  Mappings mappings_;

  // Opened memory that is no longer needed, and the event after which it may be closed.
  std::vector<void*> closing_;
  CudaEvent closable_ = nullptr;

  RankPlace place_;
  std::atomic<HostWords*> words_{nullptr};  // of place_, once all ranks have met
  std::atomic<bool> aborted_{false};
  std::string never_;  // why no call can be made this way
  std::vector<std::uint64_t*> tell_;
  std::uint64_t number_ = 0;  // of the last wait that was enqueued

  // The end of the last call: the next one, maybe on another stream, comes after it.
  CudaEvent last_ = nullptr;
};

}  // namespace fvd::nccl
