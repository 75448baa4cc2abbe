// Which reductions have a meaning for which element types: the same on every transport.
#pragma once

#include "comm/types.h"

namespace fvd {

/// Element types that reductions treat alike.
enum class Family { kBool, kInteger, kFloating, kComplex, kMovedOnly };
Family family(DataType type) noexcept;

/// Whether a reduction of this kind has a meaning for elements of this type.
bool reducible(DataType type, ReduceKind kind) noexcept;

}  // namespace fvd
