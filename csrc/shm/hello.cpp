#include "shm/hello.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "comm/error.h"

namespace fvd::shm {

void send_hello(int socket, const Hello& hello, const Domain& mine) {
  int fds[2] = {mine.self()->data_segment.fd(), mine.self()->control_segment.fd()};
  iovec part{const_cast<Hello*>(&hello), sizeof(hello)};
  alignas(cmsghdr) char buffer[CMSG_SPACE(sizeof(fds))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = buffer;
  message.msg_controllen = sizeof(buffer);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(fds));
  std::memcpy(CMSG_DATA(header), fds, sizeof(fds));
  FVD_SYS_CHECK(sendmsg(socket, &message, MSG_NOSIGNAL), "sending the segments to a peer");
}

std::optional<Received> receive_hello(int socket) {
  Received received;
  iovec part{&received.hello, sizeof(received.hello)};
  alignas(cmsghdr) char buffer[CMSG_SPACE(16 * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = buffer;
  message.msg_controllen = sizeof(buffer);
  const ssize_t bytes = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  std::vector<Socket> descriptors;
  if (bytes >= 0) {
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
      const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
      for (std::size_t i = 0; i < count; ++i) {
        int fd = -1;
        std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
        descriptors.emplace_back(fd);
      }
    }
  }
  const bool whole = bytes == sizeof(Hello) &&
                     (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0 &&
                     descriptors.size() == 2 &&
                     std::memcmp(received.hello.magic, kHelloMagic, sizeof(kHelloMagic)) == 0;
  if (!whole) return std::nullopt;
  received.data = std::move(descriptors[0]);
  received.control = std::move(descriptors[1]);
  return received;
}

}  // namespace fvd::shm
