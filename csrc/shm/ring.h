// A ring: one writer, many readers, each of whom gets every message, in order. Sleeping readers,
// a writer that waits while the slowest reader is a whole ring behind, and nothing in a file
// system.
//
// A message is a list of parts of any length. It lies in one slot, or in as many consecutive ones
// as it needs: more than the ring has, too, if the readers take it meanwhile. Long messages are
// published piece by piece, so that writer and readers copy at the same time.
//
// Threads: one call at a time on each end; close() at any time.
// Errors:  kInvalidArgument, kTimeout and an interrupt leave the ring as if the call had not been
//          made. kPeerLost: a process at one of its ends has ended, or the writer closed or gave
//          up; the ring stays so. What was published before can still be read. kAborted: this end
//          is closed, broken or belongs to the parent of a forked process.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "shm/ring_blocks.h"
#include "shm/ring_memory.h"
#include "shm/ring_watch.h"
#include "shm/wait.h"

namespace fvd::shm {

struct RingCall {
  Clock::time_point deadline = Clock::time_point::max();
  const std::function<void()>* interrupt = nullptr;  // as in comm/communicator.h
};

/// Memory one part was received into, aligned to 64 bytes unless it is the caller's.
struct RingPart {
  std::shared_ptr<std::byte> data;  // null if empty
  std::size_t bytes = 0;
};

/// Memory of the reader's caller for so many bytes, more than none. Called in the reading thread.
using RingAllocate = std::function<std::shared_ptr<std::byte>(std::size_t bytes)>;

/// What writer and readers have in common.
class RingEnd {
 public:
  virtual ~RingEnd();
  RingEnd(const RingEnd&) = delete;

  const RingAddress& address() const noexcept { return memory_->address(); }

  /// A thread waiting in a call of this end throws kAborted, as does every later call. The others
  /// learn of it once that thread is out, since it may be reading a slot, and once end_raw() has
  /// come of a begin_raw() for reading. A writer's readers may still take what was published, then
  /// throw kPeerLost. A reader is not waited for any more.
  void close() noexcept;

 protected:
  RingEnd(std::shared_ptr<RingMemory> memory, int self, Bell& bell, std::chrono::microseconds spin);

  /// Between two of these the calling thread has the end for itself.
  class Entry {
   public:
    enum Purpose { kCall, kEndOfCall };  // the end of one is allowed after close()
    Entry(RingEnd& end, const char* attempted, Purpose purpose = kCall);
    ~Entry() { end_.leave(); }
    Entry(const Entry&) = delete;

   private:
    RingEnd& end_;
  };

  /// Returns once `ready()`. `behind()` says in words whom it waits for.
  template <typename Ready, typename Behind>
  void wait(const RingCall& call, Ready&& ready, Behind&& behind);

  /// What a process's death means to this end; throws.
  [[noreturn]] virtual void lost(const std::string& who) = 0;
  /// Tells the others. Once, in the process that made the end.
  virtual void say_closed() noexcept = 0;
  /// Whether memory of the ring is lent out by this end, which therefore cannot leave yet.
  virtual bool lends() const noexcept { return false; }

  /// @throws Error(kAborted) if close() was called.
  void check_open() const;

  /// "fastvideo: dequeue on queue "tp", reader 1 of 3 (pid 4711)".
  std::string site() const;

  const std::shared_ptr<RingMemory> memory_;
  const RingLayout layout_;
  const int self_;
  RingWatch watch_;

  /// Calls say_closed(), after close(), if no thread is inside and nothing is lent.
  void settle() noexcept;
  void leave() noexcept;

 private:
  // A death may stay unnoticed for 100 ms; most of that is left to a busy machine.
  static constexpr std::chrono::milliseconds kLookEvery{20};

  /// All there is to check in a wait but deaths. @throws Error; returns for how long to sleep.
  Clock::duration look(const RingCall& call, Clock::time_point begun,
                       const std::function<std::string()>& behind);

  Bell& bell_;
  Waiter waiter_;
  const pid_t owner_;
  const char* attempted_ = "";
  std::atomic<bool> busy_{false};
  std::atomic<bool> closing_{false};
  bool said_ = false;  // guarded by busy_
};

class RingWriter final : public RingEnd {
 public:
  RingWriter(std::shared_ptr<RingMemory> memory, std::chrono::microseconds spin);
  ~RingWriter() override { close(); }

  /// Publishes one message of at least one part. Blocks while the ring is full. The parts may be
  /// overwritten when it returns. `marked`: none, or one for each part, which its readers get.
  void write(std::span<const std::span<const std::byte>> parts, const RingCall& call,
             const std::vector<bool>& marked = {});

  /// A whole slot (slot_bytes) to be filled in place; nobody sees it before end_raw(true).
  /// No other call of this end may come between the two.
  std::span<std::byte> begin_raw(const RingCall& call);
  void end_raw(bool publish);

  /// Blocks until every reader has attached.
  void wait_until_ready(const RingCall& call);

 private:
  [[noreturn]] void lost(const std::string& who) override;
  void say_closed() noexcept override { say(RingHead::kClosed, "the writer closed it"); }

  void begin(bool raw);
  bool all_left() const;
  void say(RingHead::Code code, const std::string& reason) noexcept;
  void publish(std::uint64_t position);
  bool free(std::uint64_t number);
  void wait_free(std::uint64_t number, const RingCall& call);
  void reserve(std::uint64_t bytes);
  RingSlot& prepare(std::uint64_t used, const RingSlot& message);
  std::string slowest() const;

  std::uint64_t next_ = 0;   // the slot to be written
  std::uint64_t taken_ = 0;  // by all readers, when last looked
  bool raw_open_ = false;
  std::vector<std::uint64_t> table_;     // lengths of the message being written
  std::vector<std::uint64_t> reserved_;  // bytes of each slot that are memory
  std::mutex saying_;                    // the reason is written once
};

class RingReader final : public RingEnd {
 public:
  /// Claims reader number `self`. @throws Error(kInvalidArgument) if there is none of that number
  /// or it is claimed.
  RingReader(std::shared_ptr<RingMemory> memory, int self, std::chrono::microseconds spin);
  ~RingReader() override;

  /// The next message. Blocks until it is there. Marked parts go to memory of `for_marked`, if it
  /// is given, all others to memory of this end, which takes it again once nobody holds it.
  std::vector<RingPart> read(const RingCall& call, const RingAllocate& for_marked = nullptr);

  /// The next message in place: it was written by begin_raw. Valid until end_raw, even if close()
  /// comes between; no other call of this end may.
  std::span<const std::byte> begin_raw(const RingCall& call);
  void end_raw();

  /// Blocks until every reader has attached and the writer has noticed.
  void wait_until_ready(const RingCall& call);

 private:
  /// A message half read; kept when a call ends before the message does.
  struct Incoming {
    std::uint64_t first = 0;  // slot
    std::uint64_t bytes = 0;
    std::uint64_t done = 0;
    std::vector<std::uint64_t> table;
    std::vector<RingPart> parts;  // allocated when the table is there
    std::size_t part = 0;
    std::uint64_t part_done = 0;
  };

  [[noreturn]] void lost(const std::string& who) override;
  void say_closed() noexcept override;
  bool lends() const noexcept override { return raw_open_; }

  void begin(bool raw);
  const RingSlot& wait_message(const RingCall& call);
  std::uint64_t wait_published(std::uint64_t position, const RingCall& call);
  bool receive(const RingCall& call, const RingAllocate& for_marked);
  std::span<const std::byte> available(const RingCall& call);
  std::span<std::byte> target();
  void allocate(const RingAllocate& for_marked);
  void advance(std::uint64_t bytes);
  void take(std::uint64_t number);
  std::string writers_state() const;

  std::uint64_t next_ = 0;  // the first slot of the next message
  std::unique_ptr<Incoming> incoming_;
  const std::shared_ptr<RingBlocks> blocks_ = RingBlocks::create();
  bool raw_open_ = false;
};

template <typename Ready, typename Behind>
void RingEnd::wait(const RingCall& call, Ready&& ready, Behind&& behind) {
  if (ready()) return;
  const auto begun = Clock::now();
  waiter_.wait(ready, [&] {
    // Who published or closed before it died has left what is waited for.
    if (const auto who = watch_.dead(); who && !ready()) lost(*who);
    return look(call, begun, behind);
  });
}

}  // namespace fvd::shm
