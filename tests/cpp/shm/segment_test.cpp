// What a peer that got hold of a segment's descriptor can do with it: read, and nothing else.
#include "shm/segment.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "support/process_world.h"

namespace fvd::shm {
namespace {

constexpr std::size_t kBytes = 16 * 4096;

Segment sealed(bool single_writer) {
  Segment segment = Segment::create("fastvideo_dist-test", kBytes, SegmentKind::kSealed);
  segment.seal(single_writer);
  return segment;
}

int copy_of(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }

/// The descriptor as the peer got it, and as it can open it anew with all rights its user has.
class SegmentDescriptor : public ::testing::TestWithParam<bool> {
 protected:
  SegmentDescriptor() : segment_(sealed(true)) {
    const std::string path = "/proc/self/fd/" + std::to_string(segment_.fd());
    fd_ = GetParam() ? open(path.c_str(), O_RDWR | O_CLOEXEC) : copy_of(segment_.fd());
    EXPECT_NE(fd_, -1);
  }
  ~SegmentDescriptor() override { close(fd_); }

  template <typename Result>
  static void expect_refused(Result result, Result failure) {
    EXPECT_EQ(result, failure);
    EXPECT_EQ(errno, EPERM) << std::strerror(errno);
  }

  Segment segment_;
  int fd_ = -1;
};

TEST_P(SegmentDescriptor, CannotBeResized) {
  expect_refused(ftruncate(fd_, 0), -1);
  expect_refused(ftruncate(fd_, 2 * kBytes), -1);
}

TEST_P(SegmentDescriptor, CannotBePunched) {
  expect_refused(fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
}

TEST_P(SegmentDescriptor, CannotBeWritten) {
  expect_refused(pwrite(fd_, "x", 1, 0), ssize_t{-1});
  expect_refused(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_, 0), MAP_FAILED);
}

TEST_P(SegmentDescriptor, CannotBeMadeWritableLater) {
  void* readable = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED, fd_, 0);
  ASSERT_NE(readable, MAP_FAILED);
  EXPECT_EQ(mprotect(readable, kBytes, PROT_READ | PROT_WRITE), -1);
  munmap(readable, kBytes);
}

TEST_P(SegmentDescriptor, CannotBeSealedFurther) {
  expect_refused(fcntl(fd_, F_ADD_SEALS, F_SEAL_WRITE), -1);
}

INSTANTIATE_TEST_SUITE_P(Segment, SegmentDescriptor, ::testing::Values(false, true),
                         [](const auto& info) { return info.param ? "Reopened" : "Received"; });

TEST(Segment, OwnerWritesOnWhatPeersRead) {
  Segment own = sealed(true);
  const Segment theirs = Segment::attach(copy_of(own.fd()), kBytes, false);
  own.reserve(4096, 4096);
  std::memcpy(own.data() + 5000, "hello", 6);
  EXPECT_STREQ(reinterpret_cast<const char*>(theirs.data() + 5000), "hello");
}

TEST(Segment, ControlSegmentIsWritableForPeersButKeepsItsSize) {
  const Segment own = sealed(false);
  const Segment theirs = Segment::attach(copy_of(own.fd()), kBytes, true);
  theirs.data()[7] = std::byte{42};
  EXPECT_EQ(own.data()[7], std::byte{42});
  EXPECT_EQ(ftruncate(own.fd(), 0), -1);
}

/// attach must refuse, say why, and close what it was given.
void expect_refused(int fd, const std::string& why) {
  const std::size_t before = test::open_descriptors();
  const auto ending = test::ending_of([&] {
    Segment::attach(fd, kBytes, false);
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kSystem)) << ending;
  EXPECT_TRUE(ending.says(why)) << ending;
  EXPECT_EQ(test::open_descriptors(), before - 1);
}

TEST(Segment, AttachRefusesAPipe) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  expect_refused(ends[0], "no memfd");
  close(ends[1]);
}

TEST(Segment, AttachRefusesARegularFile) {
  const test::ScratchFolder folder;
  folder.write("file", std::string(kBytes, 'x'));
  const int fd = open((folder.path() + "/file").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_NE(fd, -1);
  // A file system in memory knows seals, others do not; neither keeps the size.
  expect_refused(fd, "a peer sent");
}

TEST(Segment, AttachRefusesAMemfdThatCanShrink) {
  const Segment unsealed = Segment::create("test", kBytes, SegmentKind::kSealed);
  expect_refused(copy_of(unsealed.fd()), "could still truncate");
}

TEST(Segment, AttachRefusesAnotherSize) {
  Segment other = Segment::create("test", kBytes - 4096, SegmentKind::kSealed);
  other.seal(true);
  expect_refused(copy_of(other.fd()), "has 61440 bytes, expected 65536");
}

TEST(Segment, ReservingMoreThanThereIsIsRefusedWithTheNumbers) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer leaves no 4 TiB of addresses";
#endif
  constexpr std::size_t kHuge = std::size_t{1} << 42;
  Segment segment = Segment::create("test", kHuge, SegmentKind::kSealed);
  const auto ending = test::ending_of([&] {
    segment.reserve(0, kHuge);
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kSystem)) << ending;
  EXPECT_TRUE(ending.says("4398046511104 bytes")) << ending;
  EXPECT_TRUE(ending.says("MiB free")) << ending;
}

TEST(Segment, MovingLeavesOneOwner) {
  Segment first = sealed(true);
  std::byte* data = first.data();
  Segment second = std::move(first);
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(first.data(), nullptr);
  EXPECT_EQ(first.fd(), -1);
}

using ForkedSegment = test::ForkedTest;

/// Whether this process may read the address: the kernel answers EFAULT where we would crash.
bool is_mapped(const void* address) {
  int ends[2];
  if (pipe(ends) != 0) return false;
  const bool mapped = write(ends[1], address, 1) == 1;
  close(ends[0]);
  close(ends[1]);
  return mapped;
}

TEST_F(ForkedSegment, IsNotInheritedByAForkedChild) {
  Segment segment = sealed(true);
  segment.data()[0] = std::byte{1};
  ASSERT_TRUE(is_mapped(segment.data()));
  test::ForkedRanks child(1, [&](test::ForkedRank&) {
    test::demand(!is_mapped(segment.data()), "the child has no part of the segment");
    return "";
  });
  EXPECT_EQ(child.failures(), "");
}

TEST_F(ForkedSegment, DestroyedInAForkedChildLeavesTheChildsMemoryAlone) {
  auto segment = std::make_unique<Segment>(sealed(true));
  test::ForkedRanks child(1, [&](test::ForkedRank&) {
    // Where the parent has its segment the child has a hole, and sooner or later something in it.
    void* at = mmap(segment->data(), kBytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    test::demand(at == segment->data(), "the hole is free");
    segment.reset();
    test::demand(is_mapped(at), "what the child has put there is still there");
    return "";
  });
  EXPECT_EQ(child.failures(), "");
}

}  // namespace
}  // namespace fvd::shm
