// The one message two processes exchange when they meet: who they are, the secret, and their two
// memfds.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "shm/domain.h"
#include "shm/private_directory.h"

namespace fvd::shm {

// SOCK_SEQPACKET: a message arrives whole, with its descriptors, or not at all.
struct Hello {
  char magic[16];
  Secret secret;
  DomainId from;
  DomainId to;
  std::uint64_t nonce_from;  // of this joining: a hello of an earlier one does not count
  std::uint64_t nonce_to;
};
inline constexpr char kHelloMagic[16] = "fvd-hello-1";

/// Owns a descriptor.
class Socket {
 public:
  explicit Socket(int fd = -1) noexcept : fd_(fd) {}
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Socket& operator=(Socket&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Socket() {
    if (fd_ != -1) close(fd_);
  }
  int fd() const noexcept { return fd_; }

 private:
  int fd_;
};

struct Received {
  Hello hello{};
  Socket data;  // descriptors, closed if nobody takes them
  Socket control;
};

/// Sends `hello` with the two memfds of `mine`. @throws Error(kSystem)
void send_hello(int socket, const Hello& hello, const Domain& mine);

/// One message, without waiting; nothing if it is not a well-formed hello. Surplus descriptors are
/// closed.
std::optional<Received> receive_hello(int socket);

}  // namespace fvd::shm
