// Sizes an op may be given or not, kept from its forward to its backward pass. Under a compiler
// they are symbols.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/SymIntArrayRef.h>

#include <optional>
#include <vector>

#include "ops/differentiable.h"

namespace fvd::ops {

using MaybeSizes = std::optional<std::vector<c10::SymInt>>;

inline at::OptionalSymIntArrayRef ref(const MaybeSizes& sizes) {
  if (!sizes.has_value()) return std::nullopt;
  return c10::SymIntArrayRef(*sizes);
}

inline MaybeSizes copy_of(at::OptionalSymIntArrayRef sizes) {
  if (!sizes.has_value()) return std::nullopt;
  return sizes->vec();
}

inline void save_sizes(Saved& saved, const char* key, const MaybeSizes& sizes) {
  if (sizes.has_value()) saved[key] = c10::SymIntArrayRef(*sizes);
}

inline MaybeSizes load_sizes(const Saved& saved, const char* key) {
  const auto found = saved.find(key);
  if (found == saved.end()) return std::nullopt;
  return found->second.toSymIntVector();
}

}  // namespace fvd::ops
