// From the project's words to NCCL's: how each dtype is reduced, and what a call is in one record.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "comm/types.h"
#include "nccl/abi.h"

namespace fvd::nccl {

/// How a reduction is done. Movement needs nothing of it: all dtypes are moved as bytes.
struct WireReduction {
  WireType type;
  WireOp op;                    // kSum of a premultiplied sum, which is made for the call
  std::size_t per_element = 1;  // a complex number is two real ones
  bool premultiplied = false;
};

/// @throws Error(kInvalidArgument) where the reduction has no meaning for the dtype (on the CPU
///         neither), Error(kUnsupported) where it has one but NCCL cannot do it
WireReduction wire_reduction(DataType type, const ReduceOp& op);

/// What a premultiplied sum multiplies by, in the memory form of `type`.
struct WireScalar {
  alignas(8) std::byte bytes[8];
};
WireScalar wire_scalar(const ReduceOp& op, WireType type);

/// What a call is. Equal on all ranks of a collective.
struct Record {
  std::uint64_t sequence = 0;
  std::uint64_t count = 0;  // elements of one block; 0 where ranks may differ
  std::uint64_t layout = 0;
  double factor = 1.0;
  std::int32_t root = -1;
  Op op = Op::kNone;
  DataType type = DataType::kUInt8;
  ReduceKind reduce = ReduceKind::kSum;
  std::uint8_t has_type = 0;
  std::uint8_t has_reduce = 0;
  std::uint8_t even = 1;
  std::uint8_t reserved[6] = {};

  bool operator==(const Record&) const = default;
};
static_assert(sizeof(Record) == 48);

/// "all_reduce(SUM, float32 x 1024)"
std::string describe(const Record& record);

}  // namespace fvd::nccl
