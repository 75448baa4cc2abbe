// Messages: which receive gets which, how many may be under way, and what becomes of them at the
// end. It has over 400 lines because each promise is a test of its own over the same few ranks.
#include "shm/mailbox.h"

#include <gtest/gtest.h>

#include <cstring>
#include <future>
#include <numeric>

#include "support/thread_ranks.h"

namespace fvd::shm {
namespace {

using test::demand;
using test::Ending;
using test::ThreadRanks;
using Bytes = std::vector<unsigned char>;

Bytes message(std::size_t bytes, unsigned seed) {
  Bytes data(bytes);
  for (std::size_t i = 0; i < bytes; ++i)
    data[i] = static_cast<unsigned char>(i * 7 + seed + i / 251);
  return data;
}

std::unique_ptr<Transfer> send(Communicator& group, const Bytes& data, int to, int tag = 0) {
  return group.send(contiguous_block(static_cast<const void*>(data.data()), data.size()),
                    DataType::kUInt8, to, tag, {});
}
std::unique_ptr<Transfer> recv(Communicator& group, Bytes& data, int from, int tag = 0) {
  return group.recv(contiguous_block(static_cast<void*>(data.data()), data.size()),
                    DataType::kUInt8, from, tag, {});
}

class MailboxTest : public ::testing::Test {
 protected:
  /// One body per rank, in one group.
  std::vector<Ending> run(std::vector<std::function<void(Communicator&)>> bodies,
                          const GroupOptions& options = test::group_options()) {
    ThreadRanks ranks(static_cast<int>(bodies.size()));
    return ranks.run_group(
        [&](Communicator& group) {
          bodies[static_cast<std::size_t>(group.rank())](group);
          return "";
        },
        options);
  }
  void expect_fine(const std::vector<Ending>& endings) {
    for (const Ending& ending : endings) EXPECT_TRUE(ending.returned) << ending;
  }
};

constexpr std::size_t kWhole =
    Outbox::whole_bytes(2);  // the longest that does not need its receiver
constexpr std::size_t kPart = Outbox::part_bytes(2);
constexpr std::size_t kLane = Outbox::lane_bytes(2);

TEST_F(MailboxTest, EverySizeAroundAPart) {
  const std::vector<std::size_t> sizes{
      0,         1,     31,        32,        33,    100,       kWhole - 1,     kWhole, kWhole + 1,
      kPart - 1, kPart, kPart + 1, kLane - 1, kLane, kLane + 1, 2 * kLane + 77, 1 << 20};
  expect_fine(run({[&](Communicator& group) {
                     for (std::size_t bytes : sizes) send(group, message(bytes, 1), 1)->wait({});
                   },
                   [&](Communicator& group) {
                     for (std::size_t bytes : sizes) {
                       Bytes got(bytes, 0xaa);
                       const auto transfer = recv(group, got, 0);
                       transfer->wait({});
                       demand(transfer->done() && transfer->source() == 0, "done, from rank 0");
                       demand(got == message(bytes, 1), text("all of ", bytes, " bytes"));
                     }
                   }}));
}

TEST_F(MailboxTest, StridedOnBothSides) {
  constexpr std::size_t kRuns = 1000;
  expect_fine(run({[](Communicator& group) {
                     Bytes data = message(kRuns * 120, 0);
                     group
                         .send({reinterpret_cast<const std::byte*>(data.data()), kRuns, 100, 120},
                               DataType::kUInt8, 1, 0, {})
                         ->wait({});
                   },
                   [](Communicator& group) {
                     const Bytes sent = message(kRuns * 120, 0);
                     Bytes got(kRuns / 2 * 210, 0xaa);
                     group
                         .recv({reinterpret_cast<std::byte*>(got.data()), kRuns / 2, 200, 210},
                               DataType::kUInt8, 0, 0, {})
                         ->wait({});
                     std::size_t right = 0;
                     while (right < kRuns * 100 && got[right / 200 * 210 + right % 200] ==
                                                       sent[right / 100 * 120 + right % 100]) {
                       ++right;
                     }
                     demand(right == kRuns * 100, text("byte ", right));
                     demand(got[205] == 0xaa, "the gaps are untouched");
                   }}));
}

TEST_F(MailboxTest, TagsOutOfOrder) {
  expect_fine(run({[](Communicator& group) {
                     std::vector<std::unique_ptr<Transfer>> sends;
                     std::vector<Bytes> data;
                     for (int tag = 0; tag < 10; ++tag) data.push_back(message(50, unsigned(tag)));
                     for (int tag = 0; tag < 10; ++tag) {
                       sends.push_back(send(group, data[std::size_t(tag)], 1, tag));
                     }
                     for (const auto& sending : sends) sending->wait({});
                   },
                   [](Communicator& group) {
                     for (int tag : {9, 0, 5, 3, 4, 8, 1, 2, 7, 6}) {
                       Bytes got(50);
                       recv(group, got, 0, tag)->wait({});
                       demand(got == message(50, unsigned(tag)), text("tag ", tag));
                     }
                   }}));
}

TEST_F(MailboxTest, FirstSentFirstReceivedWithinATag) {
  constexpr unsigned kMessages = 80;
  expect_fine(run({[](Communicator& group) {
                     std::vector<Bytes> data;
                     std::vector<std::unique_ptr<Transfer>> sends;
                     for (unsigned i = 0; i < kMessages; ++i) data.push_back(message(40, i));
                     for (const Bytes& bytes : data) sends.push_back(send(group, bytes, 1, 3));
                     for (auto it = sends.rbegin(); it != sends.rend(); ++it) (*it)->wait({});
                   },
                   [](Communicator& group) {
                     std::vector<Bytes> got(kMessages, Bytes(40));
                     std::vector<std::unique_ptr<Transfer>> receives;
                     for (Bytes& bytes : got) receives.push_back(recv(group, bytes, 0, 3));
                     for (const auto& receiving : receives) receiving->wait({});
                     for (unsigned i = 0; i < kMessages; ++i) {
                       demand(got[i] == message(40, i), text("message ", i));
                     }
                   }}));
}

TEST_F(MailboxTest, AnySource) {
  const auto sender = [](Communicator& group) {
    for (unsigned i = 0; i < 20; ++i) {
      send(group, message(8, unsigned(group.rank()) * 100 + i), 0, 1)->wait({});
    }
  };
  expect_fine(run({[](Communicator& group) {
                     unsigned next[3] = {0, 0, 0};
                     for (int i = 0; i < 40; ++i) {
                       Bytes got(8);
                       const auto receiving = recv(group, got, Communicator::kAnySource, 1);
                       receiving->wait({});
                       const int source = receiving->source();
                       demand(source == 1 || source == 2, text("source ", source));
                       demand(got == message(8, unsigned(source) * 100 + next[source]++),
                              "in the order of its source");
                     }
                   },
                   sender, sender}));
}

TEST_F(MailboxTest, BothSendAMegabyteBeforeTheyReceive) {
  const auto both = [](Communicator& group) {
    const int other = 1 - group.rank();
    const Bytes data = message(1 << 20, unsigned(group.rank()));
    Bytes got(1 << 20);
    const auto sending = send(group, data, other);
    const auto receiving = recv(group, got, other);
    sending->wait({});
    receiving->wait({});
    demand(got == message(1 << 20, unsigned(other)), "the other's megabyte");
  };
  expect_fine(run({both, both}));
}

TEST_F(MailboxTest, TransfersNobodyWaitsForGoOn) {
  std::promise<void> received;
  std::shared_future<void> all_received = received.get_future().share();
  expect_fine(run({[&](Communicator& group) {
                     const Bytes data = message(1 << 20, 5);
                     const auto sending = send(group, data, 1);
                     all_received.wait_for(std::chrono::seconds(10));  // asleep elsewhere
                     demand(sending->done(), "the send is done without a wait");
                   },
                   [&](Communicator& group) {
                     Bytes got(1 << 20);
                     const auto receiving = recv(group, got, 0);
                     receiving->wait({});
                     demand(got == message(1 << 20, 5), "all of it");
                     received.set_value();
                   }}));
}

TEST_F(MailboxTest, BesideCollectives) {
  const auto body = [](Communicator& group) {
    const int other = 1 - group.rank();
    for (unsigned i = 0; i < 30; ++i) {
      const Bytes data = message(3 * kPart + i, i);
      Bytes got(data.size());
      const auto receiving = recv(group, got, other);
      const auto sending = send(group, data, other);
      float value = 1;
      group.all_reduce(&value, &value, 1, DataType::kFloat32, {}, {});
      demand(value == 2, "the sum");
      receiving->wait({});
      sending->wait({});
      demand(got == data, text("message ", i));
    }
  };
  expect_fine(run({body, body}));
}

TEST_F(MailboxTest, SeveralThreadsOfARank) {
  constexpr int kThreads = 4;
  const auto body = [](Communicator& group) {
    std::vector<std::future<void>> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.push_back(std::async(std::launch::async, [&group, t] {
        const int other = 1 - group.rank();
        for (unsigned i = 0; i < 25; ++i) {
          const Bytes data = message(1000 + i, unsigned(t));
          Bytes got(data.size());
          const auto sending = send(group, data, other, t);
          recv(group, got, other, t)->wait({});
          sending->wait({});
          demand(got == data, text("thread ", t, " message ", i));
        }
      }));
    }
    for (auto& thread : threads) thread.get();
  };
  expect_fine(run({body, body}));
}

TEST_F(MailboxTest, WhatIsUnreadWhenTheSenderLeavesStillArrives) {
  std::promise<void> left;
  ThreadRanks ranks(2);
  const auto endings = ranks.run([&](int rank) {
    auto group = ranks.world().communicator(ranks.store(), rank, test::group_options());
    if (rank == 0) {
      for (unsigned i = 0; i < 3; ++i) send(*group, message(kWhole - i, i), 1)->wait({});
      group.reset();
      ranks.world().kill(0);
      left.set_value();
      return "";
    }
    left.get_future().wait_for(std::chrono::seconds(10));
    for (unsigned i = 0; i < 3; ++i) {
      Bytes got(kWhole - i);
      recv(*group, got, 0)->wait({});
      demand(got == message(kWhole - i, i), text("message ", i));
    }
    Bytes none(1);
    const auto ending = test::ending_of([&] {
      recv(*group, none, 0)->wait({});
      return "";
    });
    demand(ending.threw(Kind::kPeerLost), ending.words);
    return "";
  });
  expect_fine(endings);
}

TEST_F(MailboxTest, TheOutboxIsNotUsedForAnotherGroupWhileAMessageIsUnread) {
  DomainOptions options = test::small_domain();
  options.slots = 2;
  ThreadRanks ranks(2, options);
  std::promise<void> reused;
  const auto endings = ranks.run([&](int rank) {
    auto group = ranks.world().communicator(ranks.store(), rank, test::group_options());
    Domain& domain = *ranks.world().domain(rank);
    if (rank == 0) {
      send(*group, message(100, 1), 1)->wait({});
      group.reset();
      domain.take_slot();  // the second one
      const auto taken = test::ending_of([&] { return std::to_string(domain.take_slot()); });
      reused.set_value();
      demand(taken.threw(Kind::kSystem), "the first one is still being read");
      for (int i = 0; i < 5000; ++i) {
        if (test::ending_of([&] { return std::to_string(domain.take_slot()); }).returned) return "";
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      throw std::runtime_error("the slot never came back");
    }
    reused.get_future().wait_for(std::chrono::seconds(10));
    Bytes got(100);
    recv(*group, got, 0)->wait({});
    demand(got == message(100, 1), "the message");
    return "";
  });
  expect_fine(endings);
}

TEST_F(MailboxTest, AnotherLengthIsAMismatchOnBothSides) {
  const auto endings =
      run({[](Communicator& group) { send(group, message(327680, 0), 1)->wait({}); },
           [](Communicator& group) {
             Bytes got(100, 0xaa);
             const auto ending = test::ending_of([&] {
               recv(group, got, 0)->wait({});
               return "";
             });
             demand(got == Bytes(100, 0xaa), "the output is untouched");
             if (ending.kind) throw Error(*ending.kind, ending.words);
           }});
  for (const Ending& ending : endings) EXPECT_TRUE(ending.threw(Kind::kMismatch)) << ending;
  EXPECT_TRUE(endings[1].says("expected 100 bytes of uint8")) << endings[1];
  EXPECT_TRUE(endings[1].says("sent 327680 bytes of uint8")) << endings[1];
}

TEST_F(MailboxTest, AnotherTypeIsAMismatch) {
  const auto endings =
      run({[](Communicator& group) { send(group, message(8, 0), 1)->wait({}); },
           [](Communicator& group) {
             float got[2];
             group.recv(contiguous_block(static_cast<void*>(got), 8), DataType::kFloat32, 0, 0, {})
                 ->wait({});
           }});
  EXPECT_TRUE(endings[1].threw(Kind::kMismatch)) << endings[1];
  EXPECT_TRUE(endings[1].says("8 bytes of float32")) << endings[1];
}

TEST_F(MailboxTest, ATimeoutNamesThePeerAndTheTag) {
  std::promise<void> over;
  const auto endings = run({[&](Communicator& group) {
                              Bytes got(4);
                              Call call;
                              call.timeout = std::chrono::milliseconds(100);
                              const auto begun = std::chrono::steady_clock::now();
                              const auto receiving = recv(group, got, 1, 42);
                              const auto ending = test::ending_of([&] {
                                receiving->wait(call);
                                return "";
                              });
                              over.set_value();
                              demand(ending.at - begun < std::chrono::seconds(2), "in time");
                              demand(ending.threw(Kind::kTimeout), ending.words);
                              demand(ending.says("tag 42") && ending.says("rank 1"), ending.words);
                              group.barrier({});
                            },
                            [&](Communicator& group) {
                              over.get_future().wait_for(std::chrono::seconds(10));
                              group.barrier({});
                            }});
  EXPECT_TRUE(endings[0].threw(Kind::kAborted)) << endings[0];
  EXPECT_TRUE(endings[1].threw(Kind::kTimeout)) << "its peer's reason: " << endings[1];
}

TEST_F(MailboxTest, NothingIsWrittenIntoMemoryGivenBackByAnInterruptedReceive) {
  std::promise<void> wanted;
  std::promise<void> sent;
  run({[&](Communicator& group) {
         Bytes got(100, 0);
         const std::function<void()> interrupt = [&] {
           wanted.set_value();
           sent.get_future().wait_for(
               std::chrono::seconds(10));  // the message is there, but nobody has looked yet
           throw std::runtime_error("interrupted");
         };
         Call call;
         call.interrupt = &interrupt;
         {
           const auto receiving = recv(group, got, 1);
           EXPECT_THROW(receiving->wait(call), std::runtime_error);
         }
         got.assign(100, 0xaa);
         std::this_thread::sleep_for(std::chrono::milliseconds(50));
         EXPECT_EQ(got, Bytes(100, 0xaa));
       },
       [&](Communicator& group) {
         wanted.get_future().wait_for(std::chrono::seconds(10));
         const Bytes data = message(100, 1);
         const auto sending = send(group, data, 0);
         sent.set_value();
         test::ending_of([&] {
           sending->wait({});
           return "";
         });
       }});
}

TEST_F(MailboxTest, ATransferMayOutliveItsCommunicator) {
  ThreadRanks ranks(2);
  const auto endings = ranks.run([&](int rank) {
    auto group = ranks.world().communicator(ranks.store(), rank, test::group_options());
    Bytes data = message(100, 0);
    const auto done = rank == 0 ? send(*group, data, 1) : recv(*group, data, 0);
    done->wait({});
    Bytes never(100);
    const auto pending = recv(*group, never, 1 - rank, 9);
    group->barrier({});
    group.reset();
    demand(done->done(), "done stays done");
    done->wait({});
    const auto ending = test::ending_of([&] {
      pending->wait({});
      return "";
    });
    demand(ending.threw(Kind::kAborted), ending.words);
    return "";
  });
  expect_fine(endings);
}

TEST_F(MailboxTest, DestroyingTheCommunicatorEndsATransferThatNobodyAnswers) {
  const auto begun = std::chrono::steady_clock::now();
  expect_fine(
      run({[](Communicator& group) {
             // Kept beyond this function, as a caller would who gives up.
             static std::unique_ptr<Transfer> pending;
             static Bytes memory(100);
             pending = recv(group, memory, 1, 9);
             std::this_thread::sleep_for(std::chrono::milliseconds(30));  // its thread has it
           },
           [](Communicator&) { std::this_thread::sleep_for(std::chrono::milliseconds(60)); }}));
  EXPECT_LT(std::chrono::steady_clock::now() - begun, std::chrono::seconds(5));
}

TEST_F(MailboxTest, AbortWakesAWaitingReceiveAndItsPeers) {
  std::atomic<int> waiting{0};
  const auto body = [&](Communicator& group) {
    std::thread aborting;
    if (group.rank() == 0) {
      aborting = std::thread([&] {
        while (waiting != 2) std::this_thread::yield();
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        group.abort("enough");
      });
    }
    Bytes got(10);
    const auto receiving = recv(group, got, 1 - group.rank());
    ++waiting;
    const auto begun = std::chrono::steady_clock::now();
    const auto ending = test::ending_of([&] {
      receiving->wait({});
      return "";
    });
    if (aborting.joinable()) aborting.join();
    demand(ending.at - begun < std::chrono::seconds(2), "at once");
    demand(ending.threw(Kind::kAborted) && ending.says("enough"), ending.words);
  };
  expect_fine(run({body, body}));
}

TEST_F(MailboxTest, ImpossibleArgumentsLeaveTheGroupUsable) {
  const auto body = [](Communicator& group) {
    Bytes data(1);
    const auto refused = [&](const std::function<void()>& call) {
      const auto ending = test::ending_of([&] {
        call();
        return "";
      });
      demand(ending.threw(Kind::kInvalidArgument), ending.words);
    };
    refused([&] { send(group, data, group.rank()); });
    refused([&] { recv(group, data, group.rank()); });
    refused([&] { send(group, data, 2); });
    refused([&] { recv(group, data, -2); });
    refused([&] { send(group, data, 1 - group.rank(), -1); });
    group.barrier({});
  };
  expect_fine(run({body, body}));
}

}  // namespace
}  // namespace fvd::shm
