#include "c10d/lookup.h"

#include <mutex>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <unordered_map>

#include "c10d/backend.h"

namespace fvd::c10d_ {
namespace {

std::mutex mutex;

// By name of the group; the youngest of a name. Never destroyed: backends may outlive the module.
std::unordered_map<std::string, FastVideoBackend*>& backends() {
  static auto* map = new std::unordered_map<std::string, FastVideoBackend*>;
  return *map;
}

FastVideoBackend* remembered(const std::string& group_name) {
  const std::lock_guard lock(mutex);
  const auto found = backends().find(group_name);
  return found == backends().end() ? nullptr : found->second;
}

c10::intrusive_ptr<::c10d::ProcessGroup> resolve(const std::string& group_name) {
  try {
    return ::c10d::resolve_process_group(group_name);
  } catch (const c10::Error&) {
    C10_THROW_ERROR(ValueError, text("fastvideo: there is no group \"", group_name,
                                     "\" (any more); create it with init_process_group or "
                                     "new_group, and call the op before destroying it"));
  }
}

}  // namespace

c10::intrusive_ptr<FastVideoBackend> find_backend(const std::string& group_name) {
  const auto group = resolve(group_name);
  const auto backend = group->getBackend(c10::DeviceType::CPU);
  auto* ours = dynamic_cast<FastVideoBackend*>(backend.get());
  // A wrapper gives the name of what it wraps, and `group` keeps both alive.
  if (ours == nullptr && backend->getBackendName() == kBackendName) ours = remembered(group_name);
  TORCH_CHECK_VALUE(ours != nullptr, "fastvideo: group \"", group_name, "\" has the backend \"",
                    backend->getBackendName(),
                    "\" for CPU tensors; this op needs init_process_group(\"fastvideo\") or "
                    "new_group(backend=\"fastvideo\")");
  return c10::intrusive_ptr<FastVideoBackend>::unsafe_reclaim_from_nonowning(ours);
}

void remember(FastVideoBackend& backend) {
  const std::lock_guard lock(mutex);
  backends()[backend.options()->group_name] = &backend;
}

void forget(FastVideoBackend& backend) noexcept {
  const std::lock_guard lock(mutex);
  const auto found = backends().find(backend.options()->group_name);
  if (found != backends().end() && found->second == &backend) backends().erase(found);
}

}  // namespace fvd::c10d_
