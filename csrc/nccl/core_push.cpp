// Calls in which ranks write into each other's memory, watched like any other.
#include "comm/log.h"
#include "nccl/core.h"

namespace fvd::nccl {

// What all ranks know of each other from the beginning. `whys`: of each, empty if nothing is in its
// way.
void Core::note_pushes(const NcclGroupOptions& options, const std::vector<std::string>& whys) {
  if (context_->size == 1) {
    why_no_push_ = "the group has one rank";
    return;
  }
  if (context_->size > RankBarrier::kMostRanks) {
    why_no_push_ = text("the group has ", context_->size, " ranks, at most ",
                        RankBarrier::kMostRanks, " can wait for each other on the device");
  }
  std::size_t refusing = 0;
  for (std::size_t rank = whys.size(); rank-- > 0;) {
    if (whys[rank].empty()) continue;
    ++refusing;
    why_no_push_ = text(context_->rank_text(static_cast<int>(rank)), ": ", whys[rank]);
  }
  if (refusing == whys.size() && !options.push) why_no_push_ = whys.front();
  if (options.push && !why_no_push_.empty()) tell_once(why_no_push_);
}

void Core::tell_once(const std::string& why) {
  if (!told_.insert(why).second) return;
  log(LogLevel::kWarning, text(context_->where(),
                               " (CUDA): FASTVIDEO_DIST_PUSH is 1, but its "
                               "exchange goes over NCCL: ",
                               why));
}

std::optional<std::string> Core::push(Record record, const Call& call,
                                      std::span<const Block> outputs,
                                      const std::function<void(const Reached&)>& write) {
  if (!why_no_push_.empty()) return why_no_push_;
  const DeviceScope device(context_->cuda, context_->device);
  const CudaStream stream = raw(call.stream);
  // All ranks capture alike, so there is nothing to agree on, and nobody may wait on the host.
  if (capturing(stream)) return "the call is captured in a CUDA graph";
  open(record);
  return guarded(name(record.op).data(), [&]() -> std::optional<std::string> {
    // Noted before this rank waits for who may have called something else.
    compare(record, call, nullptr);
    const auto agreed = in_words_of(record, [&] { return push_->agree(record, outputs, call); });
    if (!agreed.why_not.empty()) {
      tell_once(agreed.why_not);
      return agreed.why_not;
    }
    const milliseconds limit = context_->timeout_of(call);
    auto entry = in_flight_->begin(record, limit, stream);
    entry.slack = Push::kDeviceFirst;
    entry.given_up = push_->given_up();
    try {
      push_->enter(stream, limit);
      write(agreed.reached);
      push_->leave(stream, limit);
    } catch (const Error& error) {
      push_->leave_after_failure(stream, limit);
      in_flight_->drop(entry);
      throw Error(Kind::kLibrary,
                  error.what());  // whatever it is about, the others are in the call
    } catch (...) {
      push_->leave_after_failure(stream, limit);
      in_flight_->drop(entry);
      throw;
    }
    in_flight_->end(std::move(entry), stream);
    return std::nullopt;
  });
}

}  // namespace fvd::nccl
