// How much memory is left, read from trees of /proc and /sys laid out below a folder.
#include "shm/memory_limit.h"

#include <gtest/gtest.h>

#include "support/ending.h"
#include "support/scratch.h"

namespace fvd::shm {
namespace {

constexpr std::size_t kMiB = 1 << 20;

class MemoryLimit : public ::testing::Test {
 protected:
  void SetUp() override {
    tree_.write("proc/meminfo", "MemTotal: 2048 kB\nMemAvailable: 1048576 kB\n");
  }

  void cgroup(const std::string& lines) { tree_.write("proc/self/cgroup", lines); }
  /// Of cgroup v2, in bytes; `path` starts with a slash.
  void limit(const std::string& path, const std::string& max, const std::string& current) {
    tree_.write("sys/fs/cgroup" + path + "/memory.max", max + "\n");
    tree_.write("sys/fs/cgroup" + path + "/memory.current", current + "\n");
  }
  MemoryRoom room() { return read_memory_room(tree_.path() + "/"); }

  test::ScratchFolder tree_;
};

TEST_F(MemoryLimit, WithoutACgroupTheMachineDecides) {
  EXPECT_EQ(room().available, 1024 * kMiB);
  EXPECT_EQ(room().cgroup_limit, 0U);
  EXPECT_EQ(room().free(), 1024 * kMiB);
}

TEST_F(MemoryLimit, Version2LimitAtTheProcesssOwnPath) {
  cgroup("0::/job/step\n");
  limit("/job/step", "104857600", "41943040");
  EXPECT_EQ(room().cgroup_limit, 100 * kMiB);
  EXPECT_EQ(room().cgroup_used, 40 * kMiB);
  EXPECT_EQ(room().free(), 60 * kMiB);
}

TEST_F(MemoryLimit, Version2MaxIsNoLimit) {
  cgroup("0::/job\n");
  limit("/job", "max", "41943040");
  EXPECT_EQ(room().cgroup_limit, 0U);
  EXPECT_EQ(room().free(), 1024 * kMiB);
}

TEST_F(MemoryLimit, TheTightestLimitAboveCounts) {
  cgroup("0::/job/step/task\n");
  limit("/job/step/task", "max", "0");
  limit("/job/step", "209715200", "104857600");  // 100 MiB left
  limit("/job", "419430400", "367001600");       // 50 MiB left
  EXPECT_EQ(room().free(), 50 * kMiB);
}

TEST_F(MemoryLimit, AContainerThatSeesOnlyItsOwnGroupAtTheMount) {
  cgroup("0::/system/docker/abc\n");
  limit("", "104857600", "10485760");
  EXPECT_EQ(room().free(), 90 * kMiB);
}

TEST_F(MemoryLimit, PagesOfFilesThatTheKernelGivesBackDoNotCount) {
  cgroup("0::/job\n");
  limit("/job", "104857600", "94371840");
  tree_.write("sys/fs/cgroup/job/memory.stat", "anon 1\nactive_file 3\ninactive_file 52428800\n");
  EXPECT_EQ(room().cgroup_used, 40 * kMiB);
  EXPECT_EQ(room().free(), 60 * kMiB);
}

TEST_F(MemoryLimit, MoreChargedThanAllowedLeavesNothing) {
  cgroup("0::/job\n");
  limit("/job", "104857600", "105906176");
  EXPECT_EQ(room().free(), 0U);
}

TEST_F(MemoryLimit, Version1) {
  cgroup("12:cpu,cpuacct:/elsewhere\n5:memory:/job/step\n1:name=systemd:/x\n");
  tree_.write("sys/fs/cgroup/memory/job/step/memory.limit_in_bytes", "104857600\n");
  tree_.write("sys/fs/cgroup/memory/job/step/memory.usage_in_bytes", "94371840\n");
  tree_.write("sys/fs/cgroup/memory/job/step/memory.stat",
              "cache 1\ntotal_inactive_file 10485760\n");
  EXPECT_EQ(room().cgroup_limit, 100 * kMiB);
  EXPECT_EQ(room().free(), 20 * kMiB);
}

TEST_F(MemoryLimit, Version1WithoutLimitIsAHugeNumber) {
  cgroup("5:memory:/\n");
  tree_.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
  tree_.write("sys/fs/cgroup/memory/memory.usage_in_bytes", "94371840\n");
  EXPECT_EQ(room().cgroup_limit, 0U);
}

TEST_F(MemoryLimit, AControllerListedTogetherWithOthers) {
  cgroup("5:hugetlb,memory:/job\n");
  tree_.write("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "104857600\n");
  EXPECT_EQ(room().cgroup_limit, 100 * kMiB);
}

TEST_F(MemoryLimit, AMachineWithLessThanTheCgroupAllowsDecides) {
  cgroup("0::/job\n");
  limit("/job", "10737418240", "0");
  EXPECT_EQ(room().free(), 1024 * kMiB);
}

TEST_F(MemoryLimit, UnreadableTreesAreNoLimit) {
  cgroup("nonsense\n0:\n::::\n");
  limit("", "not a number", "-");
  EXPECT_EQ(room().free(), 1024 * kMiB);
}

TEST(MemoryLimitCheck, SmallIsGranted) { EXPECT_NO_THROW(check_memory_limit(4096)); }

TEST(MemoryLimitCheck, TooMuchIsRefusedWithTheNumbersAndTheWayOut) {
  const auto ending = test::ending_of([] {
    check_memory_limit(std::size_t{1} << 50);
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kSystem)) << ending;
  EXPECT_TRUE(ending.says("1125899906842624 bytes")) << ending;
  EXPECT_TRUE(ending.says("MiB free: machine ")) << ending;
  EXPECT_TRUE(ending.says("FASTVIDEO_DIST_STAGING_BYTES")) << ending;
}

}  // namespace
}  // namespace fvd::shm
