// Numbers and texts laid end to end, for what processes tell each other of where their memory is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace fvd::shm {

inline void put(std::string& out, std::uint64_t value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

inline void put(std::string& out, const std::string& value) {
  put(out, value.size());
  out += value;
}

/// Takes apart what came from another process. Nothing is read behind the end: false then.
struct SerialReader {
  const std::string& bytes;
  std::size_t at = 0;

  bool get(std::uint64_t& value) {
    if (bytes.size() - at < sizeof(value)) return false;
    std::memcpy(&value, bytes.data() + at, sizeof(value));
    at += sizeof(value);
    return true;
  }
  /// `most`: bytes a text may have.
  bool get(std::string& value, std::size_t most) {
    std::uint64_t length = 0;
    if (!get(length) || length > most || bytes.size() - at < length) return false;
    value = bytes.substr(at, length);
    at += length;
    return true;
  }
};

}  // namespace fvd::shm
