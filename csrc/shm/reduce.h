// Combining contributions element by element. Knows no ranks, no threads and no shared memory.
//
// Result of element i: sources[0][i], sources[1][i], ... combined in exactly this order, so the
// bits depend only on the values and their order: not on the instruction set, on how a caller cuts
// a tensor into pieces, nor on the thread's rounding or flush-to-zero mode. (Where several NaNs
// meet, the result is a NaN, but which payload it carries is not part of this promise.)
//
//   float16, bfloat16     accumulated in float32, rounded once at the end (to nearest even)
//   float32, float64      in their own type, never contracted to fused multiply-add
//   complex64, complex128 SUM, AVG, PRODUCT and PREMUL_SUM
//   integers              wrap around; AVG is the wrapped sum, divided and truncated towards zero
//   bool                  SUM, MAX, BOR: or; PRODUCT, MIN, BAND: and; BXOR: exclusive or
//   MIN, MAX              NaN wins over every number; of -0.0 and +0.0 any, but always the same
//   PREMUL_SUM            floating point and complex only; the factor is rounded to the type of
//                         the accumulator
//   complex32, float8     can be moved, never reduced
#pragma once

#include <cstddef>
#include <span>

#include "comm/reducible.h"
#include "comm/types.h"

namespace fvd::shm {

/// out[i] = sources[0][i] (op) sources[1][i] (op) ... for `count` elements of `type`.
/// `out` may be one of the sources; apart from that they may not overlap. No alignment needed.
/// Safe from any thread.
/// @throws Error as check_reducible does; kInvalidArgument if `sources` is empty.
void reduce(void* out, std::span<const void* const> sources, std::size_t count, DataType type,
            ReduceOp op);

/// @throws Error(kUnsupported) if no reduction of `type` exists, Error(kInvalidArgument) if this
///         `kind` has no meaning for `type`. Both name the two and say what is possible.
void check_reducible(DataType type, ReduceKind kind);

}  // namespace fvd::shm
