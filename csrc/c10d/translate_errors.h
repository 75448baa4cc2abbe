// The one place where the project's errors become the exceptions Python sees. See docs/errors.md.
#pragma once

#include <c10/util/Exception.h>

#include <exception>
#include <utility>

#include "comm/error.h"

namespace fvd::c10d_ {

[[noreturn]] inline void throw_translated(const Error& error) {
  switch (error.kind()) {  // no default: a new kind must be given its exception here
    case Kind::kInvalidArgument:
      C10_THROW_ERROR(ValueError, error.what());
    case Kind::kUnsupported:
      C10_THROW_ERROR(NotImplementedError, error.what());
    case Kind::kMismatch:
    case Kind::kTimeout:
    case Kind::kPeerLost:
    case Kind::kAborted:
    case Kind::kSystem:
    case Kind::kLibrary:
      C10_THROW_ERROR(DistBackendError, error.what());
  }
  C10_THROW_ERROR(DistBackendError, error.what());
}

/// What `body` returns; an fvd::Error leaves as the matching c10 exception, others pass.
template <typename Body>
decltype(auto) translated(Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const Error& error) {
    throw_translated(error);
  }
}

/// The same for an error that is kept to be thrown later. Null stays null.
inline std::exception_ptr translated(std::exception_ptr error) {
  if (!error) return error;
  try {
    translated([&] { std::rethrow_exception(error); });
  } catch (...) {
    return std::current_exception();
  }
  return error;
}

}  // namespace fvd::c10d_
