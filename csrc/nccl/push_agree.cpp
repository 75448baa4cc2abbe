// What the ranks of a push tell each other on the host before anything is enqueued.
#include <algorithm>
#include <utility>

#include "nccl/push.h"

namespace fvd::nccl {
namespace {

template <std::size_t kSize>
void put(std::array<char, kSize>& words, const std::string& text) {
  text.copy(words.data(), kSize - 1);
}
template <std::size_t kSize>
std::string get(const std::array<char, kSize>& words) {
  return {words.begin(), std::find(words.begin(), words.end(), '\0')};
}

/// `body(rank, piece)` for all that is there.
template <typename Offers, typename Body>
void for_pieces(const Offers& offers, Body&& body) {
  for (std::size_t rank = 0; rank < offers.size(); ++rank)
    for (std::size_t i = 0; i < offers[rank].outputs; ++i)
      if (offers[rank].pieces[i].size > 0) body(static_cast<int>(rank), offers[rank].pieces[i]);
}

}  // namespace

// Every rank says what is in its way, or nothing; all learn the first that was said.
Mappings::Refusal Push::compare(const Mappings::Refusal& mine, const Call& call) {
  struct Said {
    Why why{};
    std::uint32_t passing = 0;
  } said;
  put(said.why, mine.why);
  said.passing = mine.passing ? 1 : 0;
  const auto all = control_.exchange(said, call);
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    const std::string words = get(all[rank].why);
    if (words.empty()) continue;
    return {text(context_.rank_text(static_cast<int>(rank)), ": ", words), all[rank].passing != 0};
  }
  return {};
}

void Push::zero(RankPad* pad, const Call& call) {
  static const RankPad zeros{};
  const CudaApi& cuda = context_.cuda;
  const RelaxedScope relaxed(cuda);
  CudaStream stream = nullptr;
  check(cuda, cuda.stream_create(&stream, kStreamNonBlocking, 0), "cudaStreamCreateWithPriority");
  CudaEvent done = nullptr;
  try {
    done = events_.take();
    check(cuda, cuda.memcpy_async(pad, &zeros, sizeof(zeros), CopyKind::kDefault, stream),
          "cudaMemcpyAsync");
    check(cuda, cuda.event_record(done, stream), "cudaEventRecord");
    HostWait wait(call, context_.timeout_of(call));
    while (!passed(cuda, done)) {
      context_.fate.check();
      FVD_CHECK(wait.pause(), kTimeout, "fastvideo: ", context_.where(),
                " (CUDA): its device did not set its memory to 0 within ", seconds(wait.timeout()),
                ".", kWayOut);
    }
  } catch (...) {
    events_.give(done);
    cuda.stream_destroy(stream);
    throw;
  }
  events_.give(done);
  check(cuda, cuda.stream_destroy(stream), "cudaStreamDestroy");
}

// The first call: every rank opens the pads of all. What fails here fails for good.
bool Push::meet(const Call& call) {
  if (words() != nullptr || !never_.empty()) return never_.empty();
  struct Greeting {
    Why why{};
    Shared pad;
  } mine;
  try {
    place_ = take_place(context_.cuda, context_.device);
    zero(place_.pad, call);
    last_ = events_.take();
    mine.pad = exporter_.of(place_.pad);
  } catch (const Error& error) {
    if (error.kind() != Kind::kUnsupported && error.kind() != Kind::kLibrary) throw;
    put(mine.why, error.what());
  }
  const auto greetings = control_.exchange(mine, call);
  Mappings::Refusal trouble;
  for (std::size_t rank = 0; rank < greetings.size(); ++rank) {
    const std::string why = get(greetings[rank].why);
    if (!why.empty() && never_.empty())
      never_ = text(context_.rank_text(static_cast<int>(rank)), ": ", why);
  }
  if (!never_.empty()) return false;
  for (std::size_t rank = 0; rank < greetings.size(); ++rank) {
    auto refusal = pads_.open(static_cast<int>(rank), greetings[rank].pad);
    if (!refusal.why.empty()) trouble = std::move(refusal);
  }
  never_ = compare(trouble, call).why;
  if (!never_.empty()) return false;
  std::string none;
  for (std::size_t rank = 0; rank < greetings.size(); ++rank) {
    const auto member = static_cast<int>(rank);
    std::byte* pad = pads_.find(member, greetings[rank].pad, none);
    tell_.push_back(&reinterpret_cast<RankPad*>(pad)->heard[context_.rank].number);
  }
  words_.store(place_.words, std::memory_order_seq_cst);
  if (aborted_.load(std::memory_order_seq_cst)) abort();
  return true;
}

Push::Offer Push::offer(const Record& record, std::span<const Block> outputs) {
  Offer mine;
  mine.record = record;
  mine.outputs = static_cast<std::uint32_t>(outputs.size());
  if (outputs.size() > kMostOutputs) {
    put(mine.why, text("the call has ", outputs.size(), " outputs, at most ", kMostOutputs,
                       " can be told of"));
    return mine;
  }
  try {
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      if (outputs[i].bytes() == 0) continue;
      mine.pieces[i] = exporter_.of(outputs[i].data);
      if (!mappings_.knows(context_.rank, mine.pieces[i])) mine.fresh = 1;
    }
  } catch (const Error& error) {
    if (error.kind() != Kind::kUnsupported) throw;
    put(mine.why, error.what());
  }
  return mine;
}

// All ranks come here alike, as all have seen who tells of something new.
// Returns why one of them cannot use it.
std::string Push::open_new(const std::vector<Offer>& offers, const Call& call) {
  Mappings::Refusal mine;
  for_pieces(offers, [&](int rank, const Shared& piece) {
    auto refusal = mappings_.open(rank, piece);
    if (!refusal.why.empty()) mine = std::move(refusal);
  });
  const auto refusal = compare(mine, call);
  if (!refusal.why.empty()) mappings_.refuse_new(refusal);
  return refusal.why;
}

Push::Agreed Push::found(const std::vector<Offer>& offers) {
  Agreed agreed;
  agreed.reached.outputs = offers.front().outputs;
  agreed.reached.given_up = &place_.pad->given_up;
  for (std::size_t rank = 0; rank < offers.size(); ++rank) {
    for (std::size_t i = 0; i < offers[rank].outputs; ++i) {
      const Shared& piece = offers[rank].pieces[i];
      std::byte* data = nullptr;
      if (piece.size > 0) {
        data = mappings_.find(static_cast<int>(rank), piece, agreed.why_not);
        if (data == nullptr) return agreed;
      }
      agreed.reached.places.push_back(data);
    }
  }
  return agreed;
}

Push::Agreed Push::agree(const Record& record, std::span<const Block> outputs, const Call& call) {
  // Nothing of this may end a capture on another thread.
  const RelaxedScope relaxed(context_.cuda);
  if (!meet(call)) return {never_, {}};
  close_what_is_closable();
  const Offer mine = offer(record, outputs);
  const auto offers = control_.exchange(mine, call);
  std::vector<Record> records;
  for (const Offer& other : offers) records.push_back(other.record);
  control_.check_same(records);
  bool fresh = false;
  for (std::size_t rank = 0; rank < offers.size(); ++rank) {
    const Offer& other = offers[rank];
    const std::string why = get(other.why);
    if (!why.empty()) return {text(context_.rank_text(static_cast<int>(rank)), ": ", why), {}};
    FVD_CHECK(other.outputs == mine.outputs && other.outputs <= kMostOutputs, kMismatch,
              "fastvideo: ", describe(record), " seq ", record.sequence, " on ", context_.where(),
              " (CUDA) has ", mine.outputs, " outputs, but ", other.outputs, " on ",
              context_.rank_text(static_cast<int>(rank)), ". No output was touched.", kWayOut);
    fresh = fresh || other.fresh != 0;
  }
  mappings_.begin_call();
  for_pieces(offers, [&](int rank, const Shared& piece) { mappings_.touch(rank, piece); });
  mappings_.drop_idle();
  if (fresh) {
    if (const auto why = open_new(offers, call); !why.empty()) return {why, {}};
  }
  return found(offers);
}

}  // namespace fvd::nccl
