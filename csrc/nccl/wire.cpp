#include "nccl/wire.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <optional>

#include "comm/error.h"
#include "comm/reducible.h"

namespace fvd::nccl {
namespace {

/// Nothing for integers of 16 bits, which NCCL does not know.
std::optional<WireType> wire_type(DataType type) noexcept {
  switch (type) {
    case DataType::kBool:
    case DataType::kUInt8:
      return WireType::kUInt8;
    case DataType::kInt8:
      return WireType::kInt8;
    case DataType::kUInt32:
      return WireType::kUInt32;
    case DataType::kInt32:
      return WireType::kInt32;
    case DataType::kUInt64:
      return WireType::kUInt64;
    case DataType::kInt64:
      return WireType::kInt64;
    case DataType::kFloat16:
      return WireType::kFloat16;
    case DataType::kBFloat16:
      return WireType::kBFloat16;
    case DataType::kFloat32:
    case DataType::kComplex64:
      return WireType::kFloat32;
    case DataType::kFloat64:
    case DataType::kComplex128:
      return WireType::kFloat64;
    default:
      return std::nullopt;
  }
}

/// Of numbers; nothing if NCCL has no such operation.
std::optional<WireOp> wire_op(ReduceKind kind) noexcept {
  switch (kind) {
    case ReduceKind::kSum:
    case ReduceKind::kPremulSum:
      return WireOp::kSum;
    case ReduceKind::kAvg:
      return WireOp::kAvg;
    case ReduceKind::kProduct:
      return WireOp::kProd;
    case ReduceKind::kMin:
      return WireOp::kMin;
    case ReduceKind::kMax:
      return WireOp::kMax;
    case ReduceKind::kBitAnd:
    case ReduceKind::kBitOr:
    case ReduceKind::kBitXor:
      break;
  }
  return std::nullopt;
}

/// Of truth values, which are the bytes 0 and 1: "or" is the largest, "and" the smallest.
std::optional<WireOp> wire_op_of_bool(ReduceKind kind) noexcept {
  switch (kind) {
    case ReduceKind::kSum:
    case ReduceKind::kMax:
    case ReduceKind::kBitOr:
      return WireOp::kMax;
    case ReduceKind::kProduct:
    case ReduceKind::kMin:
    case ReduceKind::kBitAnd:
      return WireOp::kMin;
    default:
      return std::nullopt;
  }
}

std::uint16_t bfloat16_bits(float value) noexcept {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

std::uint16_t float16_bits(float value) noexcept {
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  if (std::isnan(value)) return sign | 0x7e00;
  const float size = std::fabs(value);
  if (size >= 65520.0f) return sign | 0x7c00;  // rounds to infinity
  // Below the smallest normal number the steps are 2^-24 apart, else 2^-10 of the power of two.
  int exponent = 0;
  std::frexp(size, &exponent);
  const int step = size < 0x1p-14f ? -24 : exponent - 11;
  const auto steps = static_cast<std::uint16_t>(std::lrint(std::ldexp(size, -step)));
  // As bits of a half: `steps` carries the implicit one, and a carry goes into the exponent.
  return sign | static_cast<std::uint16_t>(steps + (size < 0x1p-14f ? 0 : (step + 24) << 10));
}

}  // namespace

WireReduction wire_reduction(DataType type, const ReduceOp& reduce) {
  const ReduceKind kind = reduce.kind;
  const Family kin = family(type);
  const bool by_integer =
      kind == ReduceKind::kPremulSum && kin == Family::kInteger && reduce.multiplier.has_value();
  FVD_CHECK(kin != Family::kMovedOnly, kUnsupported, name(kind), " of ", name(type),
            " is not possible: this dtype can be moved but not reduced; convert the tensor to a "
            "wider dtype first");
  FVD_CHECK(by_integer || reducible(type, kind), kInvalidArgument, name(kind),
            " has no meaning for ", name(type));
  const auto op = kin == Family::kBool ? wire_op_of_bool(kind) : wire_op(kind);
  FVD_CHECK(op.has_value(), kUnsupported, "NCCL has no ", name(kind), " of ", name(type),
            "; reduce a copy on the CPU");
  FVD_CHECK(!(kin == Family::kComplex && kind == ReduceKind::kProduct), kUnsupported,
            "NCCL has no PRODUCT of complex numbers; reduce a copy on the CPU");
  const auto wire = wire_type(type);
  FVD_CHECK(wire.has_value(), kUnsupported, "NCCL cannot reduce ", name(type),
            "; convert the tensor to int32 first");
  return {*wire, *op, kin == Family::kComplex ? std::size_t{2} : std::size_t{1},
          kind == ReduceKind::kPremulSum};
}

WireScalar wire_scalar(const ReduceOp& op, WireType type) {
  const double value = op.factor;
  WireScalar result{};
  const auto put = [&](auto bits) { std::memcpy(result.bytes, &bits, sizeof(bits)); };
  switch (type) {
    case WireType::kFloat16:
      put(float16_bits(static_cast<float>(value)));
      break;
    case WireType::kBFloat16:
      put(bfloat16_bits(static_cast<float>(value)));
      break;
    case WireType::kFloat32:
      put(static_cast<float>(value));
      break;
    case WireType::kFloat64:
      put(value);
      break;
    default: {  // the bytes of the narrower integers come first
      static_assert(std::endian::native == std::endian::little);
      put(op.multiplier.value());
    }
  }
  return result;
}

std::string describe(const Record& record) {
  std::string words(name(record.op));
  if (record.has_type == 0) return words;
  words += "(";
  if (record.has_reduce != 0) {
    words += name(record.reduce);
    if (record.reduce == ReduceKind::kPremulSum) words += text(" of ", record.factor);
    words += ", ";
  }
  words += name(record.type);
  words += record.even != 0 ? text(" x ", record.count) : std::string(", uneven");
  if (record.root >= 0) words += text(", root ", record.root);
  if (record.layout != 0) words += text(", layout ", record.layout);
  return words + ")";
}

}  // namespace fvd::nccl
