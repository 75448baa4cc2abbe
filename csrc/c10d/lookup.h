// From a group's name, which is all an op carries, to its backend.
#pragma once

#include <c10/util/intrusive_ptr.h>

#include <string>

namespace fvd::c10d_ {

class FastVideoBackend;

/// The "fastvideo" backend for CPU tensors of the group torch knows as `group_name`
/// (`group.group_name` in Python).
/// @throws ValueError if there is no such group (any more) or its backend is another.
c10::intrusive_ptr<FastVideoBackend> find_backend(const std::string& group_name);

/// For find_backend: with TORCH_DISTRIBUTED_DEBUG=DETAIL torch hides each backend in a wrapper that
/// has no way in. To be called by the backend itself, when it is made and when it goes.
void remember(FastVideoBackend& backend);
void forget(FastVideoBackend& backend) noexcept;

}  // namespace fvd::c10d_
