// Inner seam of reduce.cpp: one set of kernels per instruction set, the best of which is chosen at
// run time. Tests compare the sets bit by bit.
//
// The kernels are compiled once per set from reduce_kernels.inc, by files that differ in nothing
// but the compiler's target. This needs neither build flags per file nor ifunc resolvers (which
// break under ThreadSanitizer and in some loaders).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "comm/types.h"

namespace fvd::shm {

/// Combines `count` elements of `sources` memories into `out`; `factor` is that of PREMUL_SUM.
using Kernel = void (*)(void* out, const void* const* sources, std::size_t source_count,
                        std::size_t count, double factor);

/// The kernel of a set; null where a combination needs none (see reduce.cpp) or has no meaning.
using KernelTable = Kernel (*)(DataType type, ReduceKind kind);

enum class Isa { kPortable, kAvx2, kAvx512 };
inline constexpr Isa kAllIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512};

/// The kernels of one set; null if this build or this processor does not have it.
KernelTable kernels(Isa isa) noexcept;

/// As reduce(), with a given set, which must be present. Arguments are not checked.
void reduce_with(KernelTable table, void* out, const void* const* sources, std::size_t source_count,
                 std::size_t count, DataType type, ReduceOp op);

Kernel portable_kernel(DataType type, ReduceKind kind);
Kernel avx2_kernel(DataType type, ReduceKind kind);
Kernel avx512_kernel(DataType type, ReduceKind kind);

}  // namespace fvd::shm
