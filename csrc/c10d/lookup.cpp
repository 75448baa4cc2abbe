#include "c10d/lookup.h"

#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>

#include "c10d/backend.h"

namespace fvd::c10d_ {

c10::intrusive_ptr<FastVideoBackend> find_backend(const std::string& group_name) {
  const auto group = ::c10d::resolve_process_group(group_name);
  const auto backend = group->getBackend(c10::DeviceType::CPU);
  auto* ours = dynamic_cast<FastVideoBackend*>(backend.get());
  TORCH_CHECK_VALUE(ours != nullptr, "fastvideo: group \"", group_name, "\" has the backend \"",
                    backend->getBackendName(),
                    "\" for CPU tensors; this op needs init_process_group(\"fastvideo\") or "
                    "new_group(backend=\"fastvideo\"), and no TORCH_DISTRIBUTED_DEBUG=DETAIL");
  return c10::intrusive_ptr<FastVideoBackend>::unsafe_reclaim_from_nonowning(ours);
}

}  // namespace fvd::c10d_
