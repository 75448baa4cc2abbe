#include "nccl/control.h"

#include <algorithm>
#include <thread>

namespace fvd::nccl {
namespace {

/// "ranks 0, 2"
std::string list(const std::vector<int>& ranks) {
  std::string words = ranks.size() == 1 ? "rank " : "ranks ";
  for (std::size_t i = 0; i < ranks.size(); ++i)
    words += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  return words;
}

// How long a rank that leaves waits for its neighbour to make room for its last records.
constexpr milliseconds kLastWords{100};

// A Communicator's abort carries words alone: the kind rides in them.
constexpr std::string_view kMark = "the CUDA side failed (";

Kind relayed_kind(const Error& error) {
  const std::string_view words = error.what();
  const auto mark = words.find(kMark);
  if (mark == std::string_view::npos) return error.kind();
  const auto rest = words.substr(mark + kMark.size());
  for (const Kind kind :
       {Kind::kMismatch, Kind::kTimeout, Kind::kPeerLost, Kind::kSystem, Kind::kLibrary})
    if (rest.starts_with(name(kind))) return kind;
  return error.kind();
}

/// What `body` returns. What another rank gave up for keeps its kind.
template <typename Body>
auto relayed(Body&& body) {
  try {
    return body();
  } catch (const Error& error) {
    throw Error(relayed_kind(error), error.what());
  }
}

/// Who calls what, the fewest first. @throws Error(kMismatch)
[[noreturn]] void throw_mismatch(const Context& context, const std::vector<Record>& records) {
  std::vector<std::pair<Record, std::vector<int>>> parties;
  for (std::size_t rank = 0; rank < records.size(); ++rank) {
    auto same = std::find_if(parties.begin(), parties.end(),
                             [&](const auto& party) { return party.first == records[rank]; });
    if (same == parties.end()) same = parties.insert(parties.end(), {records[rank], {}});
    same->second.push_back(static_cast<int>(rank));
  }
  std::stable_sort(parties.begin(), parties.end(),
                   [](const auto& a, const auto& b) { return a.second.size() < b.second.size(); });
  std::string words;
  for (std::size_t i = 0; i < parties.size(); ++i) {
    words += i == 0 ? "" : i + 1 == parties.size() ? ", but " : ", ";
    words += list(parties[i].second) + (parties[i].second.size() == 1 ? " calls " : " call ") +
             describe(parties[i].first) + text(" as seq ", parties[i].first.sequence);
  }
  throw Error(Kind::kMismatch,
              text("fastvideo: ranks disagree on a CUDA collective of ", context.where(), ": ",
                   words, ". No output was touched.", kWayOut));
}

}  // namespace

Control::Control(std::unique_ptr<Communicator> group, const Context& context)
    : context_(context), group_(std::move(group)) {}

Control::~Control() = default;

Call Control::on_host(Call call) const {
  call.stream = {};
  call.layout = 0;  // it is in the records, whose words are about the call itself
  call.timeout = context_.timeout_of(call);
  return call;
}

void Control::gather(const ConstBlock& mine, const std::vector<Block>& all, const Call& call) {
  relayed([&] { group_->all_gather(mine, all, DataType::kUInt8, on_host(call)); });
}

void Control::check_before(const Record& record, const Call& call) {
  check_same(exchange(record, call));
}

void Control::check_same(const std::vector<Record>& records) const {
  for (const Record& record : records) {
    if (!(record == records.front())) throw_mismatch(context_, records);
  }
}

void Control::check_lengths(const std::vector<std::uint64_t>& sent,
                            const std::vector<std::uint64_t>& expected, const Call& call) {
  std::vector<std::uint64_t> told(sent.size());
  std::vector<ConstBlock> out;
  std::vector<Block> in;
  for (std::size_t peer = 0; peer < sent.size(); ++peer) {
    out.push_back(contiguous_block(static_cast<const void*>(&sent[peer]), sizeof(sent[peer])));
    in.push_back(contiguous_block(static_cast<void*>(&told[peer]), sizeof(told[peer])));
  }
  relayed([&] { group_->all_to_all(out, in, DataType::kUInt64, true, on_host(call)); });
  std::int32_t wrong = -1;
  for (std::size_t peer = 0; peer < told.size(); ++peer)
    if (told[peer] != expected[peer]) wrong = static_cast<std::int32_t>(peer);
  // All have to give up, not only the two that differ.
  struct Verdict {
    std::int32_t sender;
    std::uint64_t sends, expects;
  };
  const auto w = static_cast<std::size_t>(std::max(wrong, 0));
  const auto verdicts = exchange(Verdict{wrong, told[w], expected[w]}, call);
  for (std::size_t rank = 0; rank < verdicts.size(); ++rank) {
    const Verdict& verdict = verdicts[rank];
    FVD_CHECK(verdict.sender < 0, kMismatch,
              "fastvideo: ranks disagree on an uneven all_to_all of ", context_.where(), ": rank ",
              verdict.sender, " sends ", verdict.sends, " bytes to rank ", rank, ", which expects ",
              verdict.expects, ". No output was touched.", kWayOut);
  }
}

void Control::barrier(const Call& call) {
  relayed([&] { group_->barrier(on_host(call)); });
}

void Control::note(const Record& record) {
  if (context_.size == 1) return;
  const std::lock_guard lock(mutex_);
  to_send_.push_back(record);
  to_compare_.push_back(record);
}

void Control::look() {
  if (context_.size == 1) return;
  check_group();
  for (int batch = 0; batch < kBatches && send_records(); ++batch) {
  }
  receive_records();
}

void Control::check_group() const {
  relayed([&] { group_->check(); });
}

void Control::check_everybody() {
  try {
    check_group();
    for (int member = 0; member < context_.size; ++member)
      if (const auto why = gone(member)) throw *why;
  } catch (const Error&) {
    if (!missed_) missed_ = Clock::now();
    if (Clock::now() - *missed_ >= kGrace) throw;
  }
}

std::optional<Error> Control::gone(int member) const {
  try {
    group_->check_member(member);
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  }
}

void Control::abort(Kind kind, const std::string& reason) noexcept {
  group_->abort(text(kMark, name(kind), "): ", reason));
}

/// False if there is nothing to send, or no room for it yet.
bool Control::send_records() {
  if (sending_ != nullptr) {
    if (!sending_->done()) return false;
    sending_->wait({});
    sending_.reset();
  }
  outgoing_.count = 0;
  {
    const std::lock_guard lock(mutex_);
    while (outgoing_.count < kBatch && !to_send_.empty()) {
      outgoing_.records[outgoing_.count++] = to_send_.front();
      to_send_.pop_front();
    }
  }
  if (outgoing_.count == 0) return false;
  const auto block = contiguous_block(static_cast<const void*>(&outgoing_), sizeof(outgoing_));
  sending_ = group_->send(block, DataType::kUInt8, right(), kRecords, {});
  return true;
}

void Control::leave() noexcept {
  receiving_.reset();
  try {
    // A short message is on its way at once, and stays when its sender has gone.
    const auto end = Clock::now() + kLastWords;
    do {
      while (send_records()) {
      }
      if (sending_ == nullptr) break;
      std::this_thread::yield();
    } while (Clock::now() < end);
  } catch (const Error&) {  // nobody is there to compare
  }
}

// A receive is only posted for a call that the neighbour is bound to make too: a receive whose
// sender has left is an error, and leaving after the last call is none.
bool Control::receive_batch() {
  if (receiving_ == nullptr) {
    {
      const std::lock_guard lock(mutex_);
      if (to_compare_.empty()) return false;
    }
    const auto block = contiguous_block(static_cast<void*>(&incoming_), sizeof(incoming_));
    receiving_ = group_->recv(block, DataType::kUInt8, left(), kRecords, {});
  }
  if (!receiving_->done()) return false;
  receiving_->wait({});
  receiving_.reset();
  FVD_CHECK(incoming_.count <= kBatch, kMismatch, "fastvideo: a message about ", incoming_.count,
            " calls on ", context_.where(), " came from rank ", left(), ", where at most ", kBatch,
            " fit: it is damaged");
  for (std::size_t i = 0; i < incoming_.count; ++i) ahead_.push_back(incoming_.records[i]);
  return true;
}

void Control::receive_records() {
  compare_records();
  for (int batch = 0; batch < kBatches && ahead_.empty() && receive_batch(); ++batch)
    compare_records();
}

void Control::compare_records() {
  while (!ahead_.empty()) {
    Record mine;
    {
      const std::lock_guard lock(mutex_);
      if (to_compare_.empty()) return;
      mine = to_compare_.front();
      to_compare_.pop_front();
    }
    const Record theirs = ahead_.front();
    ahead_.pop_front();
    FVD_CHECK(mine == theirs, kMismatch, "fastvideo: ranks disagree on a CUDA collective of ",
              context_.where(), ": rank ", left(), " calls ", describe(theirs), " as seq ",
              theirs.sequence, ", but rank ", context_.rank, " calls ", describe(mine), " as seq ",
              mine.sequence, ". It was found while the call ran: outputs may have been written",
              kWayOut);
  }
}

}  // namespace fvd::nccl
