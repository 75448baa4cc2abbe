// The one error type of the project and the two checks that throw it.
//
// A message says what was attempted, on which group and rank, the two values that disagree, and the
// way out. It is translated once, by c10d/translate_errors.h, into the exception Python sees.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace fvd {

/// Kinds exist because somebody acts differently on them.
enum class Kind {
  kInvalidArgument,  // the caller's argument; group stays usable      -> ValueError
  kUnsupported,      // this transport cannot; group stays usable      -> NotImplementedError
  kMismatch,         // ranks disagree on what they call; group broken -> DistBackendError
  kTimeout,          // a deadline passed; group broken                -> DistBackendError
  kPeerLost,         // a peer's process is gone; group broken         -> DistBackendError
  kAborted,          // call on a broken or aborted group              -> DistBackendError
  kSystem,           // a system call failed                           -> DistBackendError
  kLibrary,          // NCCL or CUDA returned an error                 -> DistBackendError
};
const char* name(Kind kind) noexcept;

class Error : public std::runtime_error {
 public:
  Error(Kind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  Kind kind() const noexcept { return kind_; }

 private:
  Kind kind_;
};

/// All parts streamed into one string.
template <typename... Parts>
std::string text(Parts&&... parts) {
  std::ostringstream out;
  (out << ... << std::forward<Parts>(parts));
  return out.str();
}

/// "Permission denied (errno 13)".
std::string errno_text(int code);

}  // namespace fvd

/// Throws Error(kind, parts...) unless the condition holds. The parts are only evaluated then.
#define FVD_CHECK(condition, kind, ...)                                \
  do {                                                                 \
    if (!(condition)) [[unlikely]]                                     \
      throw ::fvd::Error(::fvd::Kind::kind, ::fvd::text(__VA_ARGS__)); \
  } while (false)

/// For calls that return -1 and set errno: throws Error(kSystem, parts..., ": ", errno text).
#define FVD_SYS_CHECK(call, ...)                                                        \
  do {                                                                                  \
    if ((call) == -1) [[unlikely]] {                                                    \
      const int fvd_errno = errno;                                                      \
      throw ::fvd::Error(::fvd::Kind::kSystem,                                          \
                         ::fvd::text(__VA_ARGS__, ": ", ::fvd::errno_text(fvd_errno))); \
    }                                                                                   \
  } while (false)
