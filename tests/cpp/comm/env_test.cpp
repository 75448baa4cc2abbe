#include "comm/env.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <utility>

#include "comm/error.h"

namespace fvd {
namespace {

/// Sets a variable (or unsets it) and puts it back as it was.
class Variable {
 public:
  Variable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    value == nullptr ? unsetenv(name) : setenv(name, value, 1);
  }
  ~Variable() { before_ ? setenv(name_, before_->c_str(), 1) : unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
  std::optional<std::string> before_;
};

/// No variable is set, whatever the caller of the tests has.
class Env : public testing::Test {
  Variable log_{"FASTVIDEO_DIST_LOG", nullptr};
  Variable slots_{"FASTVIDEO_DIST_SLOTS", nullptr};
  Variable staging_{"FASTVIDEO_DIST_STAGING_BYTES", nullptr};
  Variable one_shot_{"FASTVIDEO_DIST_ONE_SHOT_BYTES", nullptr};
  Variable spin_{"FASTVIDEO_DIST_SPIN_US", nullptr};
  Variable push_{"FASTVIDEO_DIST_PUSH", nullptr};
  Variable directory_{"FASTVIDEO_DIST_SOCKET_DIRECTORY", nullptr};
  Variable runtime_{"XDG_RUNTIME_DIR", nullptr};
  Variable temporary_{"TMPDIR", nullptr};
};

std::string refusal(const char* name, const char* value) {
  const Variable variable(name, value);
  try {
    read_environment();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), Kind::kInvalidArgument);
    return error.what();
  }
  return "nothing was thrown";
}

TEST_F(Env, UnsetVariablesGiveTheDefaults) {
  const Environment env = read_environment();
  const DomainOptions defaults;
  EXPECT_EQ(env.log_level, LogLevel::kWarning);
  EXPECT_EQ(env.domain.slots, defaults.slots);
  EXPECT_EQ(env.domain.staging_bytes, defaults.staging_bytes);
  EXPECT_EQ(env.domain.one_shot_bytes, defaults.one_shot_bytes);
  EXPECT_EQ(env.domain.spin_us, defaults.spin_us);
  EXPECT_EQ(env.domain.socket_directory, defaults.socket_directory);
  EXPECT_FALSE(env.nccl.push);
}

TEST_F(Env, EveryVariableIsRead) {
  const Variable log("FASTVIDEO_DIST_LOG", "debug");
  const Variable slots("FASTVIDEO_DIST_SLOTS", "17");
  const Variable staging("FASTVIDEO_DIST_STAGING_BYTES", "1048576");
  const Variable one_shot("FASTVIDEO_DIST_ONE_SHOT_BYTES", "4096");
  const Variable spin("FASTVIDEO_DIST_SPIN_US", "0");
  const Variable directory("FASTVIDEO_DIST_SOCKET_DIRECTORY", "/");
  const Variable push("FASTVIDEO_DIST_PUSH", "1");
  const Environment env = read_environment();
  EXPECT_EQ(env.log_level, LogLevel::kDebug);
  EXPECT_EQ(env.domain.slots, 17u);
  EXPECT_EQ(env.domain.staging_bytes, 1048576u);
  EXPECT_EQ(env.domain.one_shot_bytes, 4096u);
  EXPECT_EQ(env.domain.spin_us.count(), 0);
  EXPECT_EQ(env.domain.socket_directory, "/");
  EXPECT_TRUE(env.nccl.push);
}

TEST_F(Env, EveryLogLevelHasItsWord) {
  const std::pair<const char*, LogLevel> levels[] = {{"error", LogLevel::kError},
                                                     {"warning", LogLevel::kWarning},
                                                     {"info", LogLevel::kInfo},
                                                     {"debug", LogLevel::kDebug}};
  for (const auto& [word, level] : levels) {
    const Variable variable("FASTVIDEO_DIST_LOG", word);
    EXPECT_EQ(read_environment().log_level, level);
  }
}

TEST_F(Env, UnknownLogLevelsAreRefused) {
  for (const char* value : {"", "WARN", "Debug", "3", "info "}) {
    EXPECT_EQ(refusal("FASTVIDEO_DIST_LOG", value),
              "FASTVIDEO_DIST_LOG is \"" + std::string(value) +
                  "\"; it must be error, warning, info or debug");
  }
}

TEST_F(Env, NumbersAreRefusedUnlessWholeAndInRange) {
  for (const char* value : {"", "0", "-1", "65537", "12x", " 12", "12 ", "+12", "1e3", "0x10",
                            "99999999999999999999999"}) {
    EXPECT_EQ(refusal("FASTVIDEO_DIST_SLOTS", value),
              "FASTVIDEO_DIST_SLOTS is \"" + std::string(value) +
                  "\"; it must be a whole number from 1 to 65536");
  }
}

TEST_F(Env, EveryNumberHasItsRange) {
  const std::pair<const char*, const char*> bad[] = {{"FASTVIDEO_DIST_STAGING_BYTES", "131071"},
                                                     {"FASTVIDEO_DIST_ONE_SHOT_BYTES", "1.5"},
                                                     {"FASTVIDEO_DIST_SPIN_US", "-1"},
                                                     {"FASTVIDEO_DIST_PUSH", "yes"}};
  for (const auto& [name, value] : bad) {
    const std::string message = refusal(name, value);
    EXPECT_EQ(message.find(std::string(name) + " is \"" + value + "\"; it must be a whole number"),
              0u)
        << message;
  }
  const Variable least("FASTVIDEO_DIST_STAGING_BYTES", "131072");
  EXPECT_EQ(read_environment().domain.staging_bytes, 131072u);
}

TEST_F(Env, TheSocketDirectoryIsTheFirstThatExists) {
  const Variable temporary("TMPDIR", "/usr");
  EXPECT_EQ(read_environment().domain.socket_directory, "/usr");
  const Variable runtime("XDG_RUNTIME_DIR", "/no/such/directory");
  EXPECT_EQ(read_environment().domain.socket_directory, "/usr");
  const Variable better("XDG_RUNTIME_DIR", "/");
  EXPECT_EQ(read_environment().domain.socket_directory, "/");
  const Variable chosen("FASTVIDEO_DIST_SOCKET_DIRECTORY", "/usr");
  EXPECT_EQ(read_environment().domain.socket_directory, "/usr");
}

TEST_F(Env, AChosenSocketDirectoryHasToExist) {
  for (const char* value : {"", "/no/such/directory", "/dev/null"}) {
    EXPECT_EQ(refusal("FASTVIDEO_DIST_SOCKET_DIRECTORY", value),
              "FASTVIDEO_DIST_SOCKET_DIRECTORY is \"" + std::string(value) +
                  "\", which is not a directory");
  }
}

}  // namespace
}  // namespace fvd
