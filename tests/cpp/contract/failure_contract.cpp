// Promises about errors: what is found, who learns it, what is untouched, and that every wait ends.
#include <chrono>
#include <thread>

#include "contract/communicator_contract.h"

namespace fvd::test {
namespace {

using std::chrono::milliseconds;

Call within(milliseconds timeout) { return Call{timeout, {}, nullptr}; }

/// One collective in which the rank that is called `odd` differs from the others in one thing.
struct Disagreement {
  const char* name;
  std::function<void(Communicator& group, bool odd, float* in, float* out)> call;
};

constexpr std::size_t kCount = 6;
constexpr DataType kFloats = DataType::kFloat32;

std::vector<ConstBlock> blocks_in(const Communicator& group, const float* in, std::size_t bytes) {
  return std::vector<ConstBlock>(static_cast<std::size_t>(group.size()),
                                 contiguous_block(static_cast<const void*>(in), bytes));
}
std::vector<Block> blocks_out(const Communicator& group, float* out, std::size_t bytes) {
  std::vector<Block> blocks;
  for (int r = 0; r < group.size(); ++r)
    blocks.push_back(contiguous_block(out + static_cast<std::size_t>(r) * kCount, bytes));
  return blocks;
}

/// The message of the barrier that ends with an error of a broken group.
std::string breaking_message(Communicator& group, milliseconds timeout) {
  try {
    group.barrier(within(timeout));
  } catch (const Error& error) {
    return error.what();
  }
  throw std::runtime_error("a barrier without one rank came to its end");
}

std::vector<Disagreement> disagreements() {
  using Kinds = ReduceKind;
  return {
      {"operation",
       [](Communicator& g, bool odd, float* in, float* out) {
         odd ? g.barrier({}) : g.all_reduce(in, out, kCount, kFloats, {}, {});
       }},
      {"reduce op",
       [](Communicator& g, bool odd, float* in, float* out) {
         g.all_reduce(in, out, kCount, kFloats, {odd ? Kinds::kMax : Kinds::kSum}, {});
       }},
      {"factor",
       [](Communicator& g, bool odd, float* in, float* out) {
         g.all_reduce(in, out, kCount, kFloats, {Kinds::kPremulSum, odd ? 0.5 : 0.25}, {});
       }},
      {"dtype",
       [](Communicator& g, bool odd, float* in, float* out) {
         g.all_reduce(in, out, kCount, odd ? DataType::kInt32 : kFloats, {}, {});
       }},
      {"count",
       [](Communicator& g, bool odd, float* in, float* out) {
         g.all_reduce(in, out, odd ? kCount - 1 : kCount, kFloats, {}, {});
       }},
      {"count of nothing",
       [](Communicator& g, bool odd, float* in, float* out) {
         g.all_reduce(in, out, odd ? 0 : kCount, kFloats, {}, {});
       }},
      {"root of reduce",
       [](Communicator& g, bool odd, float* in, float* out) {
         g.reduce(in, out, kCount, kFloats, {}, odd ? 1 : 0, {});
       }},
      {"root of broadcast",
       [](Communicator& g, bool odd, float*, float* out) {
         g.broadcast(contiguous_block(out, 8), kFloats, odd ? 1 : 0, {});
       }},
      {"bytes of all_gather",
       [](Communicator& g, bool odd, float* in, float* out) {
         const std::size_t bytes = odd ? 4 : 8;
         g.all_gather(contiguous_block(static_cast<const void*>(in), bytes),
                      blocks_out(g, out, bytes), kFloats, {});
       }},
      {"bytes of reduce_scatter",
       [](Communicator& g, bool odd, float* in, float* out) {
         g.reduce_scatter(blocks_in(g, in, odd ? 4 : 8), out, kFloats, {}, {});
       }},
      {"bytes of all_to_all",
       [](Communicator& g, bool odd, float* in, float* out) {
         const std::size_t bytes = odd ? 4 : 8;
         g.all_to_all(blocks_in(g, in, bytes), blocks_out(g, out, bytes), kFloats, true, {});
       }},
      {"splits of all_to_all",
       [](Communicator& g, bool odd, float* in, float* out) {
         auto sent = blocks_in(g, in, 8);  // the odd rank sends less than the others expect
         if (odd) sent[0] = sent[1] = contiguous_block(static_cast<const void*>(in), 4);
         auto received = blocks_out(g, out, 8);
         if (odd)
           received[static_cast<std::size_t>(g.rank())].run_bytes =
               sent[static_cast<std::size_t>(g.rank())].run_bytes;
         g.all_to_all(sent, received, kFloats, false, {});
       }},
  };
}

}  // namespace

TEST_P(CommunicatorContract, ADisagreementIsToldToAllAndNothingIsWritten) {
  if (!GetParam().compares_first) GTEST_SKIP() << "compares while it runs";
  if (size() == 1) return;  // nobody to disagree with
  for (const Disagreement& disagreement : disagreements()) {
    SCOPED_TRACE(disagreement.name);
    run([&](Communicator& group) {
      const int odd = size() - 1;
      const std::size_t length = kCount * static_cast<std::size_t>(size());
      std::vector<float> in(length, 1.0f), out(length, -9.0f);
      const std::string words = message_of(Kind::kMismatch, [&] {
        disagreement.call(group, group.rank() == odd, in.data(), out.data());
      });
      for (float value : out) require(value == -9.0f, "the output was written: ", value);
      if (size() > 2)
        require(words.find(text("rank ", odd)) != std::string::npos, "does not name rank ", odd,
                ": ", words);
      message_of(Kind::kAborted, [&] { group.barrier({}); });
      message_of(Kind::kAborted, [&] { group.barrier({}); });
    });
  }
}

TEST_P(CommunicatorContract, ADeadlineNamesWhoIsMissingAndBreaksTheGroupForAll) {
  if (size() == 1) return;
  run([this](Communicator& group) {
    const int late = size() - 1;
    group.barrier({});
    const auto begin = std::chrono::steady_clock::now();
    if (group.rank() != late) {
      const std::string words = breaking_message(group, milliseconds(300));
      require(words.find(text("rank ", late)) != std::string::npos, "does not name rank ", late,
              ": ", words);
      const auto waited = std::chrono::steady_clock::now() - begin;
      // The first to give up ends it for all, and ranks begin some milliseconds apart.
      require(waited >= milliseconds(200), "gave up early");
      message_of(Kind::kAborted, [&] { group.barrier({}); });
      return;
    }
    // The late rank comes when the others have given up: it must not be let through.
    std::this_thread::sleep_for(milliseconds(600));
    breaking_kind_of([&] { group.barrier({}); });
    message_of(Kind::kAborted, [&] { group.barrier({}); });
  });
}

TEST_P(CommunicatorContract, ACallsOwnTimeoutGoesBeforeTheGroups) {
  if (size() == 1) return;
  GroupOptions options = patient();
  options.timeout = milliseconds(300);
  run(
      [this](Communicator& group) {
        if (group.rank() == 0) std::this_thread::sleep_for(milliseconds(700));
        group.barrier(within(std::chrono::seconds(60)));
      },
      options);
}

TEST_P(CommunicatorContract, AReceiveEndsByItsDeadline) {
  if (size() == 1) return;
  run([](Communicator& group) {
    if (group.rank() != 0) {
      breaking_kind_of([&] { group.barrier({}); });  // stays until rank 0 has given up
      return;
    }
    float value = 0;
    message_of(Kind::kTimeout, [&] {
      const Call call = within(milliseconds(200));
      group.recv(contiguous_block(&value, 4), kFloats, 1, 0, call)->wait(call);
    });
    message_of(Kind::kAborted, [&] { group.barrier({}); });
  });
}

TEST_P(CommunicatorContract, AnAbortWakesWaitingRanks) {
  if (size() == 1) return;
  run([this](Communicator& group) {
    if (group.rank() == size() - 1) {
      group.abort("the reason given");
      const std::string words = message_of(Kind::kAborted, [&] { group.barrier({}); });
      require(words.find("the reason given") != std::string::npos, words);
      return;
    }
    const std::string words = message_of(Kind::kAborted, [&] { group.barrier({}); });
    require(words.find("the reason given") != std::string::npos, "the reason is missing: ", words);
    message_of(Kind::kAborted, [&] { group.barrier({}); });
  });
}

TEST_P(CommunicatorContract, AnAbortWakesAThreadOfItsOwnRank) {
  if (size() == 1) return;
  run([](Communicator& group) {
    if (group.rank() != 0) {
      breaking_kind_of([&] {
        group.barrier({});
        group.barrier({});
      });
      return;
    }
    group.barrier({});
    float value = 0;
    auto receive = group.recv(contiguous_block(&value, 4), kFloats, 1, 0, {});
    std::thread aborter([&] { group.abort("from another thread"); });
    const Kind kind = breaking_kind_of([&] { receive->wait({}); });
    aborter.join();
    require(kind == Kind::kAborted, "it was ", name(kind));
  });
}

TEST_P(CommunicatorContract, AnInterruptGivesTheCallUpAndBreaksTheGroup) {
  if (size() == 1) return;
  run([](Communicator& group) {
    if (group.rank() != 0) {
      breaking_kind_of([&] {
        group.barrier({});
        group.barrier({});
      });
      return;
    }
    group.barrier({});
    struct Interrupted {};
    const std::function<void()> interrupt = [] { throw Interrupted{}; };
    Call call;
    call.interrupt = &interrupt;
    bool interrupted = false;
    float value = 0;
    try {
      group.recv(contiguous_block(&value, 4), kFloats, 1, 0, call)->wait(call);
    } catch (const Interrupted&) {
      interrupted = true;
    }
    require(interrupted, "the interrupt was not asked");
    message_of(Kind::kAborted, [&] { group.barrier({}); });
  });
}

TEST_P(CommunicatorContract, ARankThatLeavesIsNotWaitedFor) {
  if (size() == 1) return;
  run([this](Communicator& group) {
    group.barrier({});
    if (group.rank() == size() - 1) return;  // its communicator is destroyed now
    const std::string words = breaking_message(group, std::chrono::seconds(60));
    require(words.find(text("rank ", size() - 1)) != std::string::npos,
            "does not name the rank: ", words);
  });
}

TEST_P(CommunicatorContract, LeavingAfterTheLastCollectiveHurtsNobody) {
  for (int turn = 0; turn < 10; ++turn) {
    run([](Communicator& group) {
      float in[kCount] = {1, 1, 1, 1, 1, 1}, out[kCount] = {};
      group.all_reduce(in, out, kCount, kFloats, {}, {});
      require(out[5] == static_cast<float>(group.size()), "the sum is ", out[5]);
    });
  }
}

TEST_P(CommunicatorContract, WrongArgumentsLeaveTheGroupUsable) {
  run([this](Communicator& group) {
    float value = 1;
    const Block block = contiguous_block(&value, 4);
    message_of(Kind::kInvalidArgument, [&] { group.broadcast(block, kFloats, size(), {}); });
    message_of(Kind::kInvalidArgument, [&] { group.broadcast(block, kFloats, -1, {}); });
    message_of(Kind::kInvalidArgument,
               [&] { group.reduce(&value, &value, 1, kFloats, {}, size(), {}); });
    group.all_reduce(&value, &value, 1, kFloats, {}, {});
    require(value == static_cast<float>(size()), "the sum is ", value);
  });
}

}  // namespace fvd::test
