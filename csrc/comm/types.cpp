#include "comm/types.h"

// No `default` in these switches: the compiler names the enumerator that was forgotten.
namespace fvd {

std::size_t element_size(DataType type) noexcept {
  switch (type) {
    case DataType::kBool:
    case DataType::kUInt8:
    case DataType::kInt8:
    case DataType::kFloat8E4M3FN:
    case DataType::kFloat8E5M2:
    case DataType::kFloat8E4M3FNUZ:
    case DataType::kFloat8E5M2FNUZ:
    case DataType::kFloat8E8M0FNU:
      return 1;
    case DataType::kUInt16:
    case DataType::kInt16:
    case DataType::kFloat16:
    case DataType::kBFloat16:
      return 2;
    case DataType::kUInt32:
    case DataType::kInt32:
    case DataType::kFloat32:
    case DataType::kComplex32:
      return 4;
    case DataType::kUInt64:
    case DataType::kInt64:
    case DataType::kFloat64:
    case DataType::kComplex64:
      return 8;
    case DataType::kComplex128:
      return 16;
  }
  return 0;
}

std::string_view name(DataType type) noexcept {
  switch (type) {
    case DataType::kBool:
      return "bool";
    case DataType::kUInt8:
      return "uint8";
    case DataType::kInt8:
      return "int8";
    case DataType::kUInt16:
      return "uint16";
    case DataType::kInt16:
      return "int16";
    case DataType::kUInt32:
      return "uint32";
    case DataType::kInt32:
      return "int32";
    case DataType::kUInt64:
      return "uint64";
    case DataType::kInt64:
      return "int64";
    case DataType::kFloat16:
      return "float16";
    case DataType::kBFloat16:
      return "bfloat16";
    case DataType::kFloat32:
      return "float32";
    case DataType::kFloat64:
      return "float64";
    case DataType::kComplex32:
      return "complex32";
    case DataType::kComplex64:
      return "complex64";
    case DataType::kComplex128:
      return "complex128";
    case DataType::kFloat8E4M3FN:
      return "float8_e4m3fn";
    case DataType::kFloat8E5M2:
      return "float8_e5m2";
    case DataType::kFloat8E4M3FNUZ:
      return "float8_e4m3fnuz";
    case DataType::kFloat8E5M2FNUZ:
      return "float8_e5m2fnuz";
    case DataType::kFloat8E8M0FNU:
      return "float8_e8m0fnu";
  }
  return "unknown dtype";
}

std::string_view name(ReduceKind kind) noexcept {
  switch (kind) {
    case ReduceKind::kSum:
      return "SUM";
    case ReduceKind::kAvg:
      return "AVG";
    case ReduceKind::kProduct:
      return "PRODUCT";
    case ReduceKind::kMin:
      return "MIN";
    case ReduceKind::kMax:
      return "MAX";
    case ReduceKind::kBitAnd:
      return "BAND";
    case ReduceKind::kBitOr:
      return "BOR";
    case ReduceKind::kBitXor:
      return "BXOR";
    case ReduceKind::kPremulSum:
      return "PREMUL_SUM";
  }
  return "unknown reduce op";
}

std::string_view name(Op op) noexcept {
  switch (op) {
    case Op::kNone:
      return "nothing yet";
    case Op::kBarrier:
      return "barrier";
    case Op::kBroadcast:
      return "broadcast";
    case Op::kAllReduce:
      return "all_reduce";
    case Op::kReduce:
      return "reduce";
    case Op::kAllGather:
      return "all_gather";
    case Op::kGather:
      return "gather";
    case Op::kScatter:
      return "scatter";
    case Op::kReduceScatter:
      return "reduce_scatter";
    case Op::kAllToAll:
      return "all_to_all";
    case Op::kSend:
      return "send";
    case Op::kRecv:
      return "recv";
  }
  return "unknown operation";
}

}  // namespace fvd
