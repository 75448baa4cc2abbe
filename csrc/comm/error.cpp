#include "comm/error.h"

#include <system_error>

namespace fvd {

const char* name(Kind kind) noexcept {
  switch (kind) {
    case Kind::kInvalidArgument:
      return "InvalidArgument";
    case Kind::kUnsupported:
      return "Unsupported";
    case Kind::kMismatch:
      return "Mismatch";
    case Kind::kTimeout:
      return "Timeout";
    case Kind::kPeerLost:
      return "PeerLost";
    case Kind::kAborted:
      return "Aborted";
    case Kind::kSystem:
      return "System";
    case Kind::kLibrary:
      return "Library";
  }
  return "unknown kind";
}

std::string errno_text(int code) {
  return text(std::generic_category().message(code), " (errno ", code, ")");
}

}  // namespace fvd
