// The words every room shares: element types, reductions and the names of the operations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace fvd {

enum class DataType : std::uint8_t {
  kBool,
  kUInt8,
  kInt8,
  kUInt16,
  kInt16,
  kUInt32,
  kInt32,
  kUInt64,
  kInt64,
  kFloat16,
  kBFloat16,
  kFloat32,
  kFloat64,
  kComplex32,  // two float16; moved, never reduced
  kComplex64,
  kComplex128,
  kFloat8E4M3FN,  // the float8 family is moved, never reduced
  kFloat8E5M2,
  kFloat8E4M3FNUZ,
  kFloat8E5M2FNUZ,
  kFloat8E8M0FNU,
};

/// Bytes of one element.
std::size_t element_size(DataType type) noexcept;
std::string_view name(DataType type) noexcept;

/// How contributions are combined. As `torch.distributed.ReduceOp` defines them.
enum class ReduceKind : std::uint8_t {
  kSum,
  kAvg,  // sum divided by the number of ranks; integers truncate towards zero
  kProduct,
  kMin,
  kMax,
  kBitAnd,
  kBitOr,
  kBitXor,
  kPremulSum,  // each contribution is multiplied by `factor` first
};
std::string_view name(ReduceKind kind) noexcept;

struct ReduceOp {
  ReduceKind kind = ReduceKind::kSum;
  double factor = 1.0;  // kPremulSum of floating and complex numbers
  // kPremulSum of integers, modulo 2^n: NCCL alone has it, and torch has no such operation.
  std::optional<std::uint64_t> multiplier = std::nullopt;
};

/// The operations of a Communicator, for messages and for the check that all ranks call the same
/// one.
enum class Op : std::uint8_t {
  kNone,
  kBarrier,
  kBroadcast,
  kAllReduce,
  kReduce,
  kAllGather,
  kGather,
  kScatter,
  kReduceScatter,
  kAllToAll,
  kSend,
  kRecv,
};
std::string_view name(Op op) noexcept;

/// A CUDA stream as an opaque handle; null for memory of the CPU.
struct Stream {
  void* handle = nullptr;
};

}  // namespace fvd
