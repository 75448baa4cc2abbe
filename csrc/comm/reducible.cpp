#include "comm/reducible.h"

namespace fvd {

Family family(DataType type) noexcept {
  switch (type) {
    case DataType::kBool:
      return Family::kBool;
    case DataType::kUInt8:
    case DataType::kInt8:
    case DataType::kUInt16:
    case DataType::kInt16:
    case DataType::kUInt32:
    case DataType::kInt32:
    case DataType::kUInt64:
    case DataType::kInt64:
      return Family::kInteger;
    case DataType::kFloat16:
    case DataType::kBFloat16:
    case DataType::kFloat32:
    case DataType::kFloat64:
      return Family::kFloating;
    case DataType::kComplex64:
    case DataType::kComplex128:
      return Family::kComplex;
    case DataType::kComplex32:
    case DataType::kFloat8E4M3FN:
    case DataType::kFloat8E5M2:
    case DataType::kFloat8E4M3FNUZ:
    case DataType::kFloat8E5M2FNUZ:
    case DataType::kFloat8E8M0FNU:
      return Family::kMovedOnly;
  }
  return Family::kMovedOnly;
}

bool reducible(DataType type, ReduceKind kind) noexcept {
  switch (kind) {
    case ReduceKind::kSum:
    case ReduceKind::kProduct:
      return family(type) != Family::kMovedOnly;
    case ReduceKind::kAvg:
      return family(type) != Family::kMovedOnly && family(type) != Family::kBool;
    case ReduceKind::kMin:
    case ReduceKind::kMax:
      return family(type) != Family::kMovedOnly && family(type) != Family::kComplex;
    case ReduceKind::kBitAnd:
    case ReduceKind::kBitOr:
    case ReduceKind::kBitXor:
      return family(type) == Family::kInteger || family(type) == Family::kBool;
    case ReduceKind::kPremulSum:
      return family(type) == Family::kFloating || family(type) == Family::kComplex;
  }
  return false;
}

}  // namespace fvd
