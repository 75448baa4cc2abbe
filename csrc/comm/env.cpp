#include "comm/env.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>

#include "comm/error.h"

namespace fvd {
namespace {

/// The variable as a whole number in [low, high]; `fallback` where it is unset.
template <typename Number>
Number number(const char* variable, Number fallback, Number low, Number high) {
  const char* value = std::getenv(variable);
  if (value == nullptr) return fallback;
  Number parsed{};
  const char* end = value + std::strlen(value);
  const auto [stop, code] = std::from_chars(value, end, parsed);
  FVD_CHECK(code == std::errc{} && stop == end && parsed >= low && parsed <= high, kInvalidArgument,
            variable, " is \"", value, "\"; it must be a whole number from ", low, " to ", high);
  return parsed;
}

LogLevel level(const char* variable, LogLevel fallback) {
  const char* value = std::getenv(variable);
  if (value == nullptr) return fallback;
  const std::string_view word(value);
  if (word == "error") return LogLevel::kError;
  if (word == "warning") return LogLevel::kWarning;
  if (word == "info") return LogLevel::kInfo;
  if (word == "debug") return LogLevel::kDebug;
  throw Error(Kind::kInvalidArgument,
              text(variable, " is \"", value, "\"; it must be error, warning, info or debug"));
}

/// False also for what cannot be looked at.
bool is_directory(const char* path) {
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored);
}

// The address of a Unix socket holds 108 bytes, of which the private folder and the socket in it
// take up to 64.
constexpr std::size_t kLongestDirectory = 40;

/// The first of the places meant for such things that exists and is not too long. A place the user
/// named has to do.
std::string socket_directory(const std::string& fallback) {
  constexpr const char* kVariable = "FASTVIDEO_DIST_SOCKET_DIRECTORY";
  if (const char* chosen = std::getenv(kVariable)) {
    FVD_CHECK(is_directory(chosen), kInvalidArgument, kVariable, " is \"", chosen,
              "\", which is not a directory");
    return chosen;
  }
  for (const char* variable : {"XDG_RUNTIME_DIR", "TMPDIR"}) {
    const char* directory = std::getenv(variable);
    if (directory == nullptr || std::string_view(directory).size() > kLongestDirectory) continue;
    if (is_directory(directory)) return directory;
  }
  return fallback;
}

/// A program with privileges its user does not have must not load what that user names.
std::string library(const char* variable) {
  const char* value = secure_getenv(variable);
  if (value == nullptr) return {};
  FVD_CHECK(*value == '/', kInvalidArgument, variable, " is \"", value,
            "\"; it must be the absolute path of a library");
  return value;
}

NcclCheck nccl_check(const char* variable, NcclCheck fallback) {
  const char* value = std::getenv(variable);
  if (value == nullptr) return fallback;
  const std::string_view word(value);
  if (word == "beside") return NcclCheck::kBeside;
  if (word == "before") return NcclCheck::kBefore;
  throw Error(Kind::kInvalidArgument,
              text(variable, " is \"", value, "\"; it must be beside or before"));
}

}  // namespace

Environment read_environment() {
  Environment env;
  DomainOptions& domain = env.domain;
  env.log_level = level("FASTVIDEO_DIST_LOG", env.log_level);
  domain.slots = number<std::size_t>("FASTVIDEO_DIST_SLOTS", domain.slots, 1, 65536);
  domain.staging_bytes = number<std::size_t>("FASTVIDEO_DIST_STAGING_BYTES", domain.staging_bytes,
                                             128 << 10, std::size_t{1} << 30);
  domain.one_shot_bytes =
      number<std::size_t>("FASTVIDEO_DIST_ONE_SHOT_BYTES", domain.one_shot_bytes, 64, 64 << 10);
  domain.spin_us = std::chrono::microseconds(number<long>(
      "FASTVIDEO_DIST_SPIN_US", static_cast<long>(domain.spin_us.count()), 0, 1000000));
  domain.socket_directory = socket_directory(domain.socket_directory);
  env.nccl.library = library("FASTVIDEO_DIST_NCCL_LIBRARY");
  env.nccl.cuda_library = library("FASTVIDEO_DIST_CUDA_LIBRARY");
  env.nccl.check = nccl_check("FASTVIDEO_DIST_NCCL_CHECK", env.nccl.check);
  env.nccl.push = number<int>("FASTVIDEO_DIST_PUSH", env.nccl.push ? 1 : 0, 0, 1) == 1;
  return env;
}

}  // namespace fvd
