// One line to stderr, one level for the process.
#pragma once

#include <string>

namespace fvd {

enum class LogLevel { kError, kWarning, kInfo, kDebug };

void set_log_level(LogLevel level) noexcept;
bool log_enabled(LogLevel level) noexcept;

/// Writes "fastvideo_dist level: message". Never throws. From any thread.
void log(LogLevel level, const std::string& message) noexcept;

}  // namespace fvd
