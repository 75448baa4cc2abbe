// Ranks as forked processes over real memfd segments and sockets. They are forked while the test
// has no other thread; each runs one function, and what that returns or throws comes back through a
// pipe.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "shm/shm_communicator.h"
#include "support/ending.h"
#include "support/scratch.h"
#include "support/thread_ranks.h"

namespace fvd::test {

/// Base of all suites that fork: ThreadSanitizer does not follow memory shared between processes,
/// and slows a fork down to where deadlines say nothing.
class ForkedTest : public ::testing::Test {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "forks; not for ThreadSanitizer";
#endif
  }
};

/// What a forked rank has at hand.
struct ForkedRank {
  int rank;
  int size;
  FileStore store;
  DomainOptions options;
  std::shared_ptr<shm::Domain> domain;  // made by the first join

  std::unique_ptr<Communicator> join(const std::string& name = "test") {
    return join(store, group_options(name));
  }
  std::unique_ptr<Communicator> join(Store& through, const GroupOptions& group) {
    if (domain == nullptr) domain = shm::make_domain(options);
    return shm::make_communicator(domain, through, rank, size, group);
  }
  /// Signals between test and ranks, through the store.
  void say(const std::string& what) { store.set("say/" + what, ""); }
  void await(const std::string& what) { store.wait_for({"say/" + what}, std::chrono::seconds(30)); }
};

class ForkedRanks {
 public:
  using Body = std::function<std::string(ForkedRank&)>;

  explicit ForkedRanks(int size, const Body& body, DomainOptions options = small_domain(),
                       std::chrono::seconds limit = std::chrono::seconds(kSanitized ? 90 : 30))
      : deadline_(std::chrono::steady_clock::now() + limit), store_(folder_.folder("store")) {
    options.socket_directory = folder_.folder("sockets");
    for (int r = 0; r < size; ++r) fork_rank(r, size, body, options);
  }
  ~ForkedRanks() {
    for (Process& process : processes_) {
      if (!process.reaped) {
        ::kill(process.pid, SIGKILL);
        waitpid(process.pid, nullptr, 0);
      }
      close(process.pipe);
    }
  }
  ForkedRanks(const ForkedRanks&) = delete;

  int size() const { return static_cast<int>(processes_.size()); }
  pid_t pid(int rank) const { return processes_[static_cast<std::size_t>(rank)].pid; }
  std::string socket_directory() const { return folder_.path() + "/sockets"; }
  FileStore& store() { return store_; }
  void say(const std::string& what) { store_.set("say/" + what, ""); }
  void await(const std::string& what) {
    store_.wait_for({"say/" + what}, std::chrono::seconds(30));
  }

  /// Sends a signal; returns when.
  std::chrono::steady_clock::time_point signal(int rank, int number) {
    const auto now = std::chrono::steady_clock::now();
    ::kill(pid(rank), number);
    return now;
  }

  /// Waits until the rank is stopped by a signal.
  void await_stop(int rank) {
    int status = 0;
    waitpid(pid(rank), &status, WUNTRACED);
    FVD_CHECK(WIFSTOPPED(status), kSystem, "rank ", rank, " ended instead of stopping");
  }

  /// Waits for the rank's end. Past the deadline all ranks are killed.
  Ending ending(int rank) {
    Process& process = processes_[static_cast<std::size_t>(rank)];
    while (true) {
      pollfd readable{process.pipe, POLLIN, 0};
      process.reaped =
          process.reaped || waitpid(process.pid, &process.status, WNOHANG) == process.pid;
      const bool ended = process.reaped;  // before the last look at the pipe
      if (poll(&readable, 1, ended ? 0 : 2) == 1 && (readable.revents & POLLIN) != 0) {
        return receive(process);
      }
      if (ended) {
        return {false, {}, text("the process ended with wait status ", process.status), {}};
      }
      if (std::chrono::steady_clock::now() > deadline_) {
        for (const Process& other : processes_) ::kill(other.pid, SIGKILL);
        return {false, {}, "did not end in time", {}};
      }
    }
  }

  std::vector<Ending> endings() {
    std::vector<Ending> all;
    for (int r = 0; r < size(); ++r) all.push_back(ending(r));
    return all;
  }

  /// "" if every rank returned; else what the others did.
  std::string failures() {
    std::ostringstream out;
    for (int r = 0; r < size(); ++r) {
      const Ending one = ending(r);
      if (!one.returned) out << "rank " << r << ' ' << one << '\n';
    }
    return out.str();
  }

 private:
  struct Process {
    pid_t pid = -1;
    int pipe = -1;
    bool reaped = false;
    int status = 0;
  };
  struct Header {
    bool returned;
    int kind;  // -1: none
    std::chrono::steady_clock::time_point at;
    std::size_t length;
  };

  void fork_rank(int rank, int size, const Body& body, const DomainOptions& options) {
    int ends[2];
    FVD_SYS_CHECK(pipe2(ends, O_CLOEXEC), "making a pipe to a rank");
    const pid_t pid = fork();
    FVD_SYS_CHECK(pid, "forking a rank");
    if (pid != 0) {
      close(ends[1]);
      processes_.push_back({pid, ends[0]});
      return;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::signal(SIGPIPE, SIG_IGN);
    close(ends[0]);
    for (const Process& earlier : processes_) close(earlier.pipe);
    const Ending ending = ending_of([&] {
      ForkedRank own{rank, size, store_, options, nullptr};
      return body(own);
    });
    const Header header{ending.returned, ending.kind ? static_cast<int>(*ending.kind) : -1,
                        ending.at, ending.words.size()};
    std::string message(reinterpret_cast<const char*>(&header), sizeof(header));
    message += ending.words;
    const bool sent =
        write(ends[1], message.data(), message.size()) == static_cast<ssize_t>(message.size());
    _exit(sent ? 0 : 3);
  }

  /// Endings are far smaller than a pipe, so they come in one piece.
  static Ending receive(const Process& process) {
    std::string message(64 << 10, '\0');
    const ssize_t got = read(process.pipe, message.data(), message.size());
    Header header{};
    FVD_CHECK(got >= static_cast<ssize_t>(sizeof(header)), kSystem, "a rank's ending is cut off");
    std::memcpy(&header, message.data(), sizeof(header));
    Ending ending{header.returned, {}, message.substr(sizeof(header), header.length), header.at};
    if (header.kind != -1) ending.kind = static_cast<Kind>(header.kind);
    return ending;
  }

  std::chrono::steady_clock::time_point deadline_;
  ScratchFolder folder_;
  FileStore store_;
  std::vector<Process> processes_;
};

/// Open descriptors of this process.
inline std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

/// Mappings of shared segments in this process.
inline std::size_t segment_mappings() {
  std::ifstream maps("/proc/self/maps");
  std::size_t count = 0;
  for (std::string line; std::getline(maps, line);) {
    if (line.find("memfd:fastvideo_dist") != std::string::npos) ++count;
  }
  return count;
}

inline double seconds_between(std::chrono::steady_clock::time_point from,
                              std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace fvd::test
