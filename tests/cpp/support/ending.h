// How one rank's part of a test ended: with words, with an Error, or otherwise.
#pragma once

#include <chrono>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>

#include "comm/error.h"

namespace fvd::test {

struct Ending {
  bool returned = false;
  std::optional<Kind> kind;  // of the Error that was thrown
  std::string words;         // returned or thrown
  std::chrono::steady_clock::time_point at{};

  bool threw(Kind wanted) const { return kind.has_value() && *kind == wanted; }
  bool says(const std::string& part) const { return words.find(part) != std::string::npos; }
};

inline std::ostream& operator<<(std::ostream& out, const Ending& ending) {
  if (ending.returned) return out << "returned \"" << ending.words << '"';
  return out << (ending.kind ? name(*ending.kind) : "no Error") << ": " << ending.words;
}

/// Runs `body`, which returns a string, and catches what it throws.
template <typename Body>
Ending ending_of(Body&& body) {
  Ending ending;
  try {
    ending.words = body();
    ending.returned = true;
  } catch (const Error& error) {
    ending.kind = error.kind();
    ending.words = error.what();
  } catch (const std::exception& error) {
    ending.words = error.what();
  }
  ending.at = std::chrono::steady_clock::now();
  return ending;
}

/// For code whose failures GoogleTest cannot see (other processes) or would only count (threads).
inline void demand(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error("not so: " + what);
}

}  // namespace fvd::test
