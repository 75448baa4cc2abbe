// Promises of send and recv.
#include <algorithm>

#include "contract/communicator_contract.h"

namespace fvd::test {
namespace {

constexpr DataType kBytes = DataType::kUInt8;

/// A message and the memory it lies in.
struct Message {
  Message(std::size_t bytes, std::uint64_t seed) : memory(1, bytes, 0), seed(seed) {}
  StridedMemory memory;
  std::uint64_t seed;
  std::unique_ptr<Transfer> transfer;

  void send(Communicator& group, int to, int tag) {
    memory.fill(seed);
    transfer = group.send(memory.const_block(), kBytes, to, tag, {});
  }
  void recv(Communicator& group, int from, int tag) {
    transfer = group.recv(memory.block(), kBytes, from, tag, {});
  }
  void wait() { transfer->wait({}); }
  void check(const std::string& what) { memory.check(seed, what); }
};

std::uint64_t seed_of(int from, std::size_t number) {
  return static_cast<std::uint64_t>(from) * 1000 + number;
}

}  // namespace

TEST_P(CommunicatorContract, MessagesOfEverySizeGoAroundARing) {
  if (size() == 1) return;  // there is nobody to send to; sending to oneself is tested below
  run([this](Communicator& group) {
    const int right = (group.rank() + 1) % size(), left = (group.rank() + size() - 1) % size();
    for (std::size_t bytes : byte_counts()) {
      Message out(bytes, seed_of(group.rank(), bytes)), in(bytes, seed_of(left, bytes));
      out.send(group, right, 3);
      in.recv(group, left, 3);
      in.wait();
      out.wait();
      require(in.transfer->done() && out.transfer->done(), "waited for but not done");
      require(in.transfer->source() == left, "source ", in.transfer->source());
      in.check(text("message of ", bytes, " bytes"));
    }
  });
}

TEST_P(CommunicatorContract, MessagesMayLieInRuns) {
  if (size() == 1) return;
  run([](Communicator& group) {
    for (std::size_t bytes : {std::size_t{60}, std::size_t{300000}}) {
      for (StridedMemory& memory : shapes_of(bytes)) {
        if (group.rank() == 0) {
          memory.fill(8);
          group.send(memory.const_block(), kBytes, 1, 0, {})->wait({});
        } else if (group.rank() == 1) {
          group.recv(memory.block(), kBytes, 0, 0, {})->wait({});
          memory.check(8, text("message of ", bytes, " bytes"));
        }
      }
    }
  });
}

TEST_P(CommunicatorContract, TagsKeepMessagesApart) {
  if (!GetParam().matches_tags) GTEST_SKIP() << "no tags";
  if (size() == 1) return;
  run([](Communicator& group) {
    for (std::size_t bytes : {std::size_t{8}, std::size_t{200000}}) {
      std::vector<Message> messages;
      for (int tag = 0; tag < 4; ++tag) messages.emplace_back(bytes, seed_of(tag, bytes));
      if (group.rank() == 0) {
        for (int tag = 0; tag < 4; ++tag)
          messages[static_cast<std::size_t>(tag)].send(group, 1, tag);
        for (Message& message : messages) message.wait();
      } else if (group.rank() == 1) {
        for (int tag = 3; tag >= 0; --tag) {  // the last sent first
          Message& message = messages[static_cast<std::size_t>(tag)];
          message.recv(group, 0, tag);
          message.wait();
          message.check(text("tag ", tag));
        }
      }
    }
  });
}

TEST_P(CommunicatorContract, EqualTagsArriveInTheOrderSent) {
  if (size() == 1) return;
  run([](Communicator& group) {
    if (group.rank() > 1) return;
    std::vector<Message> messages;
    for (std::size_t number = 0; number < 60; ++number)
      messages.emplace_back(1 + number * 7919 % 30000, seed_of(1, number));
    for (Message& message : messages) {
      if (group.rank() == 0) message.send(group, 1, 7);
      if (group.rank() == 1) message.recv(group, 0, 7);
    }
    for (Message& message : messages) message.wait();
    for (std::size_t number = 0; number < messages.size() && group.rank() == 1; ++number)
      messages[number].check(text("message ", number));
  });
}

TEST_P(CommunicatorContract, AnySourceNamesTheSender) {
  if (!GetParam().matches_tags) GTEST_SKIP() << "no tags";
  if (size() == 1) return;
  run([this](Communicator& group) {
    for (std::size_t bytes : {std::size_t{5}, std::size_t{100000}}) {
      if (group.rank() != 0) {
        Message message(bytes, seed_of(group.rank(), bytes));
        message.send(group, 0, static_cast<int>(bytes));
        message.wait();
        continue;
      }
      std::vector<int> senders;
      for (int number = 1; number < size(); ++number) {
        Message message(bytes, 0);
        message.recv(group, Communicator::kAnySource, static_cast<int>(bytes));
        message.wait();
        senders.push_back(message.transfer->source());
        message.seed = seed_of(senders.back(), bytes);
        message.check(text("from ", senders.back()));
      }
      std::sort(senders.begin(), senders.end());
      for (int number = 1; number < size(); ++number)
        require(senders[static_cast<std::size_t>(number) - 1] == number, "nothing came from ",
                number);
    }
  });
}

TEST_P(CommunicatorContract, AllMaySendLargeMessagesBeforeTheyReceive) {
  run([this](Communicator& group) {
    const std::size_t bytes = 5 * GetParam().staging_bytes + 1;
    std::vector<Message> out, in;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == group.rank()) continue;
      out.emplace_back(bytes, seed_of(group.rank(), static_cast<std::size_t>(peer)));
      out.back().send(group, peer, 0);
      in.emplace_back(bytes, seed_of(peer, static_cast<std::size_t>(group.rank())));
    }
    std::size_t next = 0;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == group.rank()) continue;
      in[next].recv(group, peer, 0);
      in[next].wait();
      in[next++].check(text("from ", peer));
    }
    for (Message& message : out) message.wait();
  });
}

TEST_P(CommunicatorContract, TransfersStandBesideTheOrderOfCollectives) {
  if (size() == 1) return;
  run([this](Communicator& group) {
    for (std::size_t bytes : {std::size_t{9}, 3 * GetParam().staging_bytes}) {
      Message message(bytes, 77);
      if (group.rank() == 0) message.recv(group, 1, 0);  // posted before the collective
      group.barrier({});
      if (group.rank() == 0) {
        message.wait();
        message.check("received before, sent after");
      } else if (group.rank() == 1) {
        message.send(group, 0, 0);  // sent after it
        message.wait();
      }
      Message other(bytes, 78);
      if (group.rank() == 0) other.send(group, 1, 0);
      group.barrier({});
      if (group.rank() == 1) {
        other.recv(group, 0, 0);
        other.wait();
        other.check("sent before, received after");
      } else if (group.rank() == 0) {
        other.wait();
      }
    }
  });
}

TEST_P(CommunicatorContract, AReceiveIsNotDoneBeforeItsMessageIsThere) {
  if (size() == 1) return;
  run([](Communicator& group) {
    Message message(100, 5);
    if (group.rank() == 0) {
      message.recv(group, 1, 0);
      require(!message.transfer->done(), "done before it was sent");
    }
    group.barrier({});
    if (group.rank() == 1) message.send(group, 0, 0);
    if (group.rank() <= 1) message.wait();
    if (group.rank() == 0) message.check("message");
  });
}

TEST_P(CommunicatorContract, AReceiveGivenUpBeforeItsMessageLeavesTheGroupUsable) {
  if (size() == 1) return;
  run([](Communicator& group) {
    if (group.rank() == 0) {
      Message given_up(100, 0);
      given_up.recv(group, 1, 4);
      given_up.transfer.reset();
    }
    group.barrier({});
    Message message(100, 5);
    if (group.rank() == 1) message.send(group, 0, 4);
    if (group.rank() == 0) message.recv(group, 1, 4);
    if (group.rank() <= 1) message.wait();
    if (group.rank() == 0) message.check("the next receive of that tag");
  });
}

TEST_P(CommunicatorContract, WrongPeersAndTagsAreRefused) {
  run([this](Communicator& group) {
    Message message(4, 1);
    const int other = (group.rank() + 1) % size();
    message_of(Kind::kInvalidArgument, [&] { message.send(group, group.rank(), 0); });
    message_of(Kind::kInvalidArgument, [&] { message.recv(group, group.rank(), 0); });
    message_of(Kind::kInvalidArgument, [&] { message.send(group, size(), 0); });
    message_of(Kind::kInvalidArgument, [&] { message.send(group, Communicator::kAnySource, 0); });
    message_of(Kind::kInvalidArgument, [&] { message.recv(group, size(), 0); });
    if (size() > 1) message_of(Kind::kInvalidArgument, [&] { message.send(group, other, -1); });
    if (size() > 1) message_of(Kind::kInvalidArgument, [&] { message.recv(group, other, -1); });
    group.barrier({});
  });
}

/// The receiver's mismatch, and what the sender learns of it: at once if it still waits, else (a
/// short message may be on its way already) by its next call.
void disagree(Communicator& group, const std::function<std::unique_ptr<Transfer>()>& send,
              const std::function<std::unique_ptr<Transfer>()>& recv,
              const std::vector<std::string>& named) {
  if (group.rank() == 1) {
    const std::string words = message_of(Kind::kMismatch, [&] { recv()->wait({}); });
    for (const std::string& name : named)
      require(words.find(name) != std::string::npos, "does not name ", name, ": ", words);
  } else if (group.rank() == 0) {
    try {
      send()->wait({});
    } catch (const Error& error) {
      require(error.kind() == Kind::kMismatch, "the sender got ", name(error.kind()), ": ",
              error.what());
    }
  }
  breaking_kind_of([&] { group.barrier({}); });
}

TEST_P(CommunicatorContract, AMessageOfAnotherLengthIsAMismatchOnBothSides) {
  if (!GetParam().compares_first) GTEST_SKIP() << "compares while it runs";
  if (size() == 1) return;
  for (std::size_t sent : {std::size_t{4}, 3 * GetParam().staging_bytes}) {
    for (std::size_t expected : {sent / 2, sent + 4}) {
      run([&](Communicator& group) {
        Message out(sent, 1), in(expected, 1);
        out.memory.fill(1);
        disagree(
            group, [&] { return group.send(out.memory.const_block(), kBytes, 1, 0, {}); },
            [&] { return group.recv(in.memory.block(), kBytes, 0, 0, {}); },
            {std::to_string(sent), std::to_string(expected), "rank 0"});
        in.memory.check_untouched("the receiver's memory");
      });
    }
  }
}

TEST_P(CommunicatorContract, AMessageOfAnotherTypeIsAMismatchOnBothSides) {
  if (!GetParam().compares_first) GTEST_SKIP() << "compares while it runs";
  if (size() == 1) return;
  run([](Communicator& group) {
    StridedMemory memory(1, 8, 0);
    disagree(
        group, [&] { return group.send(memory.const_block(), DataType::kInt64, 1, 0, {}); },
        [&] { return group.recv(memory.block(), DataType::kFloat64, 0, 0, {}); },
        {"int64", "float64", "rank 0"});
    memory.check_untouched("the memory");
  });
}

TEST_P(CommunicatorContract, ASenderThatStillWaitsIsToldOfTheMismatch) {
  if (!GetParam().compares_first) GTEST_SKIP() << "compares while it runs";
  if (size() == 1) return;
  run([this](Communicator& group) {
    if (group.rank() > 1) return;
    // Longer than any buffer: it cannot be gone before the receiver has looked.
    Message message((group.rank() == 0 ? 5 : 4) * GetParam().staging_bytes, 1);
    if (group.rank() == 0) message.send(group, 1, 0);
    if (group.rank() == 1) message.recv(group, 0, 0);
    message_of(Kind::kMismatch, [&] { message.wait(); });
  });
}

}  // namespace fvd::test
