// From a group's name, which is all an op carries, to its backend.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <string>

namespace fvd::c10d_ {

class FastVideoBackend;

/// The "fastvideo" backend for CPU tensors of the group torch knows as `group_name`
/// (`group.group_name` in Python).
/// @throws RuntimeError if there is no such group (any more), ValueError if its backend is another.
c10::intrusive_ptr<FastVideoBackend> find_backend(const std::string& group_name);

}  // namespace fvd::c10d_
