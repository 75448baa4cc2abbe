// The meeting place: ours alone to open, gone afterwards, whatever became of its maker.
#include "shm/private_directory.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "support/process_world.h"

namespace fvd::shm {
namespace {

unsigned mode_of(const std::string& path) {
  struct stat status {};
  return lstat(path.c_str(), &status) == 0 ? status.st_mode & 07777 : 0;
}

std::size_t entries(const std::string& folder) {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
}

std::string refusal(const std::string& path) {
  const auto ending = test::ending_of([&] {
    read_secret(path);
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kSystem)) << ending;
  return ending.words;
}

class PrivateDirectoryTest : public ::testing::Test {
 protected:
  test::ScratchFolder parent_;
};

TEST_F(PrivateDirectoryTest, OnlyItsUserCanOpenIt) {
  const mode_t before = umask(0);  // not even a process without a umask opens it to others
  const PrivateDirectory directory(parent_.path());
  umask(before);
  EXPECT_EQ(mode_of(directory.path()), 0700U);
  EXPECT_EQ(mode_of(directory.path() + "/secret"), 0600U);
  EXPECT_EQ(read_secret(directory.path()), directory.secret());
  EXPECT_NE(directory.secret(), Secret{});
}

TEST_F(PrivateDirectoryTest, SecretsDiffer) {
  const PrivateDirectory one(parent_.path());
  const PrivateDirectory other(parent_.path());
  EXPECT_NE(one.path(), other.path());
  EXPECT_NE(one.secret(), other.secret());
}

TEST_F(PrivateDirectoryTest, IsRemovedWithTheSocketInIt) {
  {
    const PrivateDirectory directory(parent_.path());
    parent_.write(std::filesystem::path(directory.path()).filename().string() + "/socket", "");
    EXPECT_EQ(entries(parent_.path()), 1U);
  }
  EXPECT_EQ(entries(parent_.path()), 0U);
}

TEST_F(PrivateDirectoryTest, AFolderOthersCanOpenIsRefused) {
  const PrivateDirectory directory(parent_.path());
  for (const mode_t mode : {0710U, 0704U, 0701U}) {
    chmod(directory.path().c_str(), mode);
    EXPECT_NE(refusal(directory.path()).find("alone. Refused"), std::string::npos) << mode;
  }
}

TEST_F(PrivateDirectoryTest, ASecretOthersCanReadIsRefused) {
  const PrivateDirectory directory(parent_.path());
  chmod((directory.path() + "/secret").c_str(), 0640);
  EXPECT_NE(refusal(directory.path()).find("secret"), std::string::npos);
}

TEST_F(PrivateDirectoryTest, SymbolicLinksAreRefused) {
  const PrivateDirectory directory(parent_.path());
  const std::string link = parent_.path() + "/link";
  std::filesystem::create_symlink(directory.path(), link);
  EXPECT_NE(refusal(link), "");
  const std::string secret = directory.path() + "/secret";
  std::filesystem::rename(secret, parent_.path() + "/elsewhere");
  std::filesystem::create_symlink(parent_.path() + "/elsewhere", secret);
  EXPECT_NE(refusal(directory.path()), "");
}

TEST_F(PrivateDirectoryTest, AShortSecretIsRefused) {
  const PrivateDirectory directory(parent_.path());
  ASSERT_EQ(truncate((directory.path() + "/secret").c_str(), 3), 0);
  EXPECT_NE(refusal(directory.path()).find("too short"), std::string::npos);
}

TEST_F(PrivateDirectoryTest, AMissingFolderNamesTheVariable) {
  EXPECT_NE(refusal(parent_.path() + "/none").find("FASTVIDEO_DIST_SOCKET_DIRECTORY"),
            std::string::npos);
  const auto ending = test::ending_of([&] {
    const PrivateDirectory directory(parent_.path() + "/none");
    return "";
  });
  EXPECT_TRUE(ending.threw(Kind::kSystem)) << ending;
  EXPECT_TRUE(ending.says("FASTVIDEO_DIST_SOCKET_DIRECTORY")) << ending;
}

TEST_F(PrivateDirectoryTest, APathTooLongForASocketIsRefusedAndNothingLeft) {
  const std::string deep = parent_.folder(std::string(90, 'd'));
  const auto ending = test::ending_of([&] {
    const PrivateDirectory directory(deep);
    return "";
  });
  EXPECT_TRUE(ending.says("too long for a Unix socket")) << ending;
  EXPECT_EQ(entries(deep), 0U);
}

TEST_F(PrivateDirectoryTest, SweepingFollowsNoLink) {
  const std::string victim = parent_.folder("victim");
  parent_.write("victim/secret", "precious");
  const std::string name = text("fastvideo_dist-", geteuid(), "-4194305-1-abcdef");
  std::filesystem::create_symlink(victim, parent_.path() + "/" + name);
  { const PrivateDirectory directory(parent_.path()); }
  EXPECT_TRUE(std::filesystem::exists(victim + "/secret"));
}

TEST_F(PrivateDirectoryTest, SweepingLeavesWhatIsNotOurs) {
  parent_.write("fastvideo_dist-notes/secret", "x");
  parent_.write(text("fastvideo_dist-", geteuid() + 1, "-4194305-1-abcdef/secret"), "x");
  { const PrivateDirectory directory(parent_.path()); }
  EXPECT_EQ(entries(parent_.path()), 2U);
}

class ForkedPrivateDirectory : public test::ForkedTest {
 protected:
  test::ScratchFolder parent_;
};

TEST_F(ForkedPrivateDirectory, TheNextOneRemovesWhatAKilledProcessLeft) {
  test::ForkedRanks owners(2, [&](test::ForkedRank& rank) -> std::string {
    const PrivateDirectory directory(parent_.path());
    rank.say("made/" + std::to_string(rank.rank));
    rank.await("never");
    return "";
  });
  owners.await("made/0");
  owners.await("made/1");
  EXPECT_EQ(entries(parent_.path()), 2U);
  owners.signal(0, SIGKILL);
  siginfo_t info{};
  // Its parent has not asked for it yet: a zombie is dead all the same.
  waitid(P_PID, static_cast<id_t>(owners.pid(0)), &info, WEXITED | WNOWAIT);
  { const PrivateDirectory directory(parent_.path()); }
  EXPECT_EQ(entries(parent_.path()), 1U) << "the living owner keeps its own";
  owners.signal(1, SIGKILL);
  waitid(P_PID, static_cast<id_t>(owners.pid(1)), &info, WEXITED | WNOWAIT);
  { const PrivateDirectory directory(parent_.path()); }
  EXPECT_EQ(entries(parent_.path()), 0U);
}

}  // namespace
}  // namespace fvd::shm
