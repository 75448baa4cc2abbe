// Connects two processes: each hands the other its two memfds over a Unix socket, after both have
// shown that they are who the store said (kernel credentials) and can read the listener's private
// directory (secret).
//
// Rank j listens for the unconnected ranks below it and connects to those above it, so no pair
// meets twice and the chain of waiting ends at the highest rank.
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "comm/error.h"
#include "comm/log.h"
#include "shm/domain.h"
#include "shm/hello.h"
#include "shm/private_directory.h"
#include "shm/process.h"

namespace fvd::shm {
namespace {

// A killed process closes its sockets a moment before its pidfd tells: so many milliseconds are
// given to that.
constexpr int kDeathAfterHangUp = 100;
constexpr std::size_t kMostStrangers = 256;  // connections that have not yet said who they are

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  FVD_CHECK(path.size() < sizeof(address.sun_path), kSystem, "the path ", path, " is too long");
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

std::string describe(const PeerInfo& info, int rank) {
  return text("rank ", rank, " (pid ", info.pid, ")");
}

/// The kernel's word on who is at the other end.
bool is_process(int socket, const PeerInfo& info) {
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) == 0 &&
         credentials.uid == geteuid() && static_cast<std::uint64_t>(credentials.pid) == info.pid;
}

std::shared_ptr<Peer> make_peer(const PeerInfo& info, Received received, int pidfd) {
  auto peer = std::make_shared<Peer>();
  peer->pidfd = pidfd;
  peer->info = info;
  peer->info.connected.clear();
  const Layout layout = info.layout();
  const auto take = [](Socket& socket) {
    const int fd = fcntl(socket.fd(), F_DUPFD_CLOEXEC, 0);
    FVD_SYS_CHECK(fd, "keeping a peer's segment");
    return fd;
  };
  peer->data_segment = Segment::attach(take(received.data), layout.data_bytes(), false);
  peer->control_segment = Segment::attach(take(received.control), layout.control_bytes(), true);
  peer->data = peer->data_segment.data();
  peer->control = peer->control_segment.data();
  return peer;
}

/// One joining of one group, seen from one rank.
class Meeting {
 public:
  Meeting(Domain& mine, Store& store, std::string key_prefix, int rank,
          const std::vector<PeerInfo>& infos, const std::vector<int>& ranks, JoinLimits& limits)
      : mine_(mine),
        store_(store),
        key_prefix_(std::move(key_prefix)),
        rank_(rank),
        infos_(infos),
        ranks_(ranks),
        limits_(limits) {}

  std::vector<std::shared_ptr<Peer>> run(const std::string& directory) {
    open_pidfds();
    std::optional<PrivateDirectory> meeting_place;
    Socket listener;
    if (std::any_of(ranks_.begin(), ranks_.end(), [&](int r) { return r < rank_; })) {
      meeting_place.emplace(directory);
      listener = listen_at(meeting_place->socket_path());
      store_.set(key_prefix_ + "meet/" + std::to_string(rank_), meeting_place->path());
    }
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      if (ranks_[i] > rank_) peers_[i] = connect_to(i);
    }
    if (meeting_place) {
      accept_all(listener, meeting_place->secret());
      remove_if_possible(store_, key_prefix_ + "meet/" + std::to_string(rank_));
    }
    return std::move(peers_);
  }

 private:
  const PeerInfo& info(std::size_t i) const { return infos_[static_cast<std::size_t>(ranks_[i])]; }
  const PeerInfo& own() const { return infos_[static_cast<std::size_t>(rank_)]; }

  void open_pidfds() {
    peers_.resize(ranks_.size());
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      const auto pid = static_cast<pid_t>(info(i).pid);
      pidfds_.emplace_back(open_pidfd(pid));
      FVD_CHECK(start_time(pid) == info(i).start_time, kPeerLost, describe(info(i), ranks_[i]),
                " ended while the group was being joined");
    }
  }

  /// Throws if rank ranks_[i] has died, time is up or the user wants no more. `wait` milliseconds
  /// are given to it before.
  void check_there(std::size_t i, const char* what, int wait = 0) {
    pollfd pidfd{pidfds_[i].fd(), POLLIN, 0};
    poll(&pidfd, 1, wait);
    const auto pid = static_cast<pid_t>(info(i).pid);
    FVD_CHECK(pidfd.revents == 0 && (pidfd.fd != -1 || !has_ended(pid, info(i).start_time)),
              kPeerLost, describe(info(i), ranks_[i]),
              " ended while the group was being joined: ", describe_state(pid, info(i).start_time));
    FVD_CHECK(Clock::now() < limits_.deadline, kTimeout, describe(info(i), ranks_[i]), " did not ",
              what, " in time: it is in ", describe_state(pid, info(i).start_time));
    limits_.look();
  }

  /// Waits for `fd` to become readable, or throws when rank ranks_[i] dies or time is up.
  void wait_readable(int fd, std::size_t i) {
    while (true) {
      pollfd fds[2] = {{fd, POLLIN, 0}, {pidfds_[i].fd(), POLLIN, 0}};
      const int ready = poll(fds, 2, limits_.slice());
      FVD_SYS_CHECK(ready == -1 && errno != EINTR ? -1 : 0, "waiting for ",
                    describe(info(i), ranks_[i]));
      // A killed process hangs up its sockets, too: what can be read may be nothing.
      if (ready > 0 && (fds[0].revents & POLLIN) != 0 && fds[1].revents == 0) return;
      check_there(i, "answer");
    }
  }

  Hello hello_to(const PeerInfo& other, const Secret& secret) const {
    Hello hello{};
    std::memcpy(hello.magic, kHelloMagic, sizeof(kHelloMagic));
    hello.secret = secret;
    hello.from = own().domain;
    hello.to = other.domain;
    hello.nonce_from = own().nonce;
    hello.nonce_to = other.nonce;
    return hello;
  }

  bool expected(const Hello& hello, const PeerInfo& other, const Secret& secret) const {
    // The secrets are of one machine and one minute; nobody can time this comparison.
    return hello.secret == secret && hello.from == other.domain && hello.to == own().domain &&
           hello.nonce_from == other.nonce && hello.nonce_to == own().nonce;
  }

  Socket listen_at(const std::string& path) {
    Socket listener(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    FVD_SYS_CHECK(listener.fd(), "making a socket");
    const sockaddr_un address = address_of(path);
    FVD_SYS_CHECK(bind(listener.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)),
                  "binding ", path);
    FVD_SYS_CHECK(listen(listener.fd(), 4096), "listening at ", path);
    return listener;
  }

  std::shared_ptr<Peer> connect_to(std::size_t i) {
    const std::string key = key_prefix_ + "meet/" + std::to_string(ranks_[i]);
    const std::string path = wait_for_key(key, i);
    Secret secret{};
    try {
      secret = read_secret(path);
    } catch (const Error&) {
      check_there(i, "open its socket",
                  kDeathAfterHangUp);  // whoever dies takes its folder along, or a sweep does
      throw;
    }
    Socket connection(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    FVD_SYS_CHECK(connection.fd(), "making a socket");
    const sockaddr_un address = address_of(path + "/socket");
    while (connect(connection.fd(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) ==
           -1) {
      const int reason = errno;
      // EAGAIN: its queue is full, or it is stopped. A refusal is most often a death.
      check_there(i, "accept a connection", reason == EAGAIN ? 1 : kDeathAfterHangUp);
      errno = reason;
      FVD_SYS_CHECK(reason == EAGAIN || reason == EINTR ? 0 : -1, "connecting to ",
                    describe(info(i), ranks_[i]));
    }
    FVD_CHECK(is_process(connection.fd(), info(i)), kSystem, "the process at ", path, " is not ",
              describe(info(i), ranks_[i]), " of this user. Refused");
    send_hello(connection.fd(), hello_to(info(i), secret), mine_);
    wait_readable(connection.fd(), i);
    auto answer = receive_hello(connection.fd());
    if (!answer) check_there(i, "answer", kDeathAfterHangUp);
    FVD_CHECK(answer && expected(answer->hello, info(i), secret), kSystem,
              describe(info(i), ranks_[i]), " refused the connection or gave a malformed answer");
    return make_peer(info(i), std::move(*answer), dup_pidfd(i));
  }

  /// The store cannot be polled together with a pidfd: slices, so that a death is not waited out.
  std::string wait_for_key(const std::string& key, std::size_t i) {
    while (!store_.has(key)) check_there(i, "open its socket", 1);
    return store_.wait_for({key}, std::chrono::milliseconds(1000)).at(0);
  }

  int dup_pidfd(std::size_t i) {
    return pidfds_[i].fd() == -1 ? -1 : fcntl(pidfds_[i].fd(), F_DUPFD_CLOEXEC, 0);
  }

  /// The first rank below ours that is still to come; -1 if all have.
  int next_missing() const {
    for (std::size_t i = 0; i < ranks_.size(); ++i) {
      if (ranks_[i] < rank_ && peers_[i] == nullptr) return static_cast<int>(i);
    }
    return -1;
  }

  /// Whoever connects is a stranger until its hello is right; silent strangers cost a descriptor
  /// each, at most kMostStrangers of them, and delay nobody.
  void accept_all(const Socket& listener, const Secret& secret) {
    std::vector<Socket> strangers;
    while (next_missing() != -1) {
      std::vector<pollfd> fds{{listener.fd(), POLLIN, 0}};
      for (const Socket& stranger : strangers) fds.push_back({stranger.fd(), POLLIN, 0});
      for (const Socket& pidfd : pidfds_) fds.push_back({pidfd.fd(), POLLIN, 0});
      const int ready = poll(fds.data(), fds.size(), limits_.slice());
      if (ready == -1 && errno == EINTR) continue;
      FVD_SYS_CHECK(ready, "waiting for ranks to connect");
      std::vector<Socket> remaining;
      for (std::size_t s = 0; s < strangers.size(); ++s) {
        if (fds[s + 1].revents == 0) {
          remaining.push_back(std::move(strangers[s]));
        } else {
          greet(strangers[s], secret);
        }
      }
      strangers = std::move(remaining);
      if (fds[0].revents != 0) {
        Socket stranger(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        const bool gone = errno == EAGAIN || errno == EINTR || errno == ECONNABORTED;
        if (stranger.fd() == -1 && !gone) FVD_SYS_CHECK(-1, "accepting a rank that connects");
        if (stranger.fd() != -1) {
          if (strangers.size() == kMostStrangers) strangers.erase(strangers.begin());
          strangers.push_back(std::move(stranger));
        }
      }
      for (std::size_t i = 0; i < ranks_.size(); ++i) {
        if (peers_[i] == nullptr || fds[fds.size() - pidfds_.size() + i].revents != 0) {
          check_there(i, "connect");
        }
      }
    }
  }

  /// Reads a stranger's hello; connects it if it is one of ours, else drops it.
  void greet(const Socket& stranger, const Secret& secret) {
    auto received = receive_hello(stranger.fd());
    if (received) {
      for (std::size_t i = 0; i < ranks_.size(); ++i) {
        if (peers_[i] != nullptr || ranks_[i] > rank_) continue;
        if (!expected(received->hello, info(i), secret)) continue;
        if (!is_process(stranger.fd(), info(i))) continue;
        try {
          send_hello(stranger.fd(), hello_to(info(i), secret), mine_);
        } catch (const Error&) {
          check_there(i, "take the answer", kDeathAfterHangUp);
          throw;
        }
        peers_[i] = make_peer(info(i), std::move(*received), dup_pidfd(i));
        return;
      }
    }
    log(LogLevel::kWarning, "refused a connection to the group's socket that is of no rank of it");
  }

  Domain& mine_;
  Store& store_;
  std::string key_prefix_;
  int rank_;
  const std::vector<PeerInfo>& infos_;
  const std::vector<int>& ranks_;
  JoinLimits& limits_;
  std::vector<Socket> pidfds_;
  std::vector<std::shared_ptr<Peer>> peers_;
};

class SocketConnector : public Connector {
 public:
  explicit SocketConnector(std::string directory) : directory_(std::move(directory)) {}

  SegmentKind segment_kind() const override { return SegmentKind::kSealed; }

  std::vector<std::shared_ptr<Peer>> connect(Domain& mine, Store& store,
                                             const std::string& key_prefix, int rank,
                                             const std::vector<PeerInfo>& infos,
                                             const std::vector<int>& ranks,
                                             JoinLimits& limits) override {
    return Meeting(mine, store, key_prefix, rank, infos, ranks, limits).run(directory_);
  }

  void sweep() override { sweep_private_directories(directory_); }

 private:
  std::string directory_;
};

}  // namespace

std::unique_ptr<Connector> make_socket_connector(std::string directory) {
  return std::make_unique<SocketConnector>(std::move(directory));
}

}  // namespace fvd::shm
