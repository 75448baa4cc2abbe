#include "comm/log.h"

#include <atomic>
#include <cstdio>

namespace fvd {
namespace {

// The one global of this room: a level has to be readable from destructors and `noexcept` paths.
std::atomic<LogLevel> level_of_process{LogLevel::kWarning};

const char* name(LogLevel level) noexcept {
  switch (level) {
    case LogLevel::kError:
      return "error";
    case LogLevel::kWarning:
      return "warning";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kDebug:
      return "debug";
  }
  return "?";
}

}  // namespace

void set_log_level(LogLevel level) noexcept { level_of_process.store(level); }

bool log_enabled(LogLevel level) noexcept { return level <= level_of_process.load(); }

void log(LogLevel level, const std::string& message) noexcept {
  if (log_enabled(level)) {
    std::fprintf(stderr, "fastvideo_dist %s: %s\n", name(level), message.c_str());
  }
}

}  // namespace fvd
