#include "shm/segment.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "comm/error.h"
#include "shm/memory_limit.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010  // Linux 5.1
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U  // Linux 6.3
#endif

namespace fvd::shm {
namespace {

int make_memfd(const std::string& label) {
  int fd = memfd_create(label.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
  if (fd == -1 && errno == EINVAL) {  // a kernel that does not know MFD_NOEXEC_SEAL
    fd = memfd_create(label.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING);
  }
  return fd;
}

std::byte* map(int fd, std::size_t bytes, bool writable) {
  const int flags = fd == -1 ? MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
  void* at = mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, flags, fd, 0);
  if (at == MAP_FAILED) return nullptr;
  // A forked child (a DataLoader worker) must not be able to write into the group's memory, and
  // weights do not belong into core files.
  madvise(at, bytes, MADV_DONTFORK);
  madvise(at, bytes, MADV_DONTDUMP);
  return static_cast<std::byte*>(at);
}

}  // namespace

Segment Segment::create(const std::string& label, std::size_t bytes, SegmentKind kind) {
  Segment segment;
  segment.bytes_ = bytes;
  segment.owner_ = getpid();
  if (kind == SegmentKind::kSealed) {
    segment.fd_ = make_memfd(label);
    FVD_SYS_CHECK(segment.fd_, "memfd_create for ", label);
    FVD_SYS_CHECK(fchmod(segment.fd_, 0600), "fchmod of ", label);
    FVD_SYS_CHECK(ftruncate(segment.fd_, static_cast<off_t>(bytes)), "sizing ", label, " to ",
                  bytes, " bytes");
  }
  segment.data_ = map(segment.fd_, bytes, true);
  FVD_SYS_CHECK(segment.data_ == nullptr ? -1 : 0, "mapping ", bytes, " bytes of ", label);
  return segment;
}

Segment Segment::attach(int fd, std::size_t bytes, bool writable) {
  Segment segment;
  segment.fd_ = fd;  // closed by the destructor if a check below throws
  struct stat status {};
  FVD_SYS_CHECK(fstat(fd, &status), "a peer's segment cannot be examined");
  const int seals = fcntl(fd, F_GET_SEALS);
  FVD_CHECK(seals != -1, kSystem, "a peer sent a descriptor that is no memfd");
  FVD_CHECK((seals & F_SEAL_SHRINK) != 0, kSystem, "a peer sent a segment it could still truncate");
  FVD_CHECK(static_cast<std::size_t>(status.st_size) == bytes, kSystem, "a peer's segment has ",
            status.st_size, " bytes, expected ", bytes);
  segment.bytes_ = bytes;
  segment.owner_ = getpid();
  segment.data_ = map(fd, bytes, writable);
  FVD_SYS_CHECK(segment.data_ == nullptr ? -1 : 0, "mapping ", bytes, " bytes of a peer");
  close(std::exchange(segment.fd_, -1));  // the mapping keeps the memory
  return segment;
}

Segment::Segment(Segment&& other) noexcept { *this = std::move(other); }

Segment& Segment::operator=(Segment&& other) noexcept {
  if (this != &other) {
    release();
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    fd_ = std::exchange(other.fd_, -1);
    owner_ = other.owner_;
  }
  return *this;
}

Segment::~Segment() { release(); }

void Segment::release() noexcept {
  if (data_ != nullptr && owner_ == getpid()) munmap(data_, bytes_);
  if (fd_ != -1) close(fd_);
  data_ = nullptr;
  fd_ = -1;
}

void Segment::reserve(std::size_t offset, std::size_t bytes) {
  if (fd_ == -1 || bytes == 0) return;
  check_memory_limit(bytes);
  int status = 0;
  do {
    status = fallocate(fd_, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (status == -1 && errno == EINTR);
  FVD_SYS_CHECK(status, "reserving ", bytes, " bytes of shared memory (", memory_summary(), ")");
}

void Segment::seal(bool single_writer) {
  if (fd_ == -1) return;
  FVD_SYS_CHECK(fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), "sealing a segment's size");
  if (single_writer && fcntl(fd_, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == -1 && errno != EINVAL) {
    FVD_SYS_CHECK(-1, "sealing a segment against other writers");  // EINVAL: Linux before 5.1
  }
  FVD_SYS_CHECK(fcntl(fd_, F_ADD_SEALS, F_SEAL_SEAL), "sealing a segment's seals");
}

}  // namespace fvd::shm
