// What reduce() must compute, element by element and by other means: 16-bit floats are converted
// through powers of two, not bit by bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "comm/types.h"

namespace fvd::test {

inline constexpr DataType kAllTypes[] = {
    DataType::kBool,           DataType::kUInt8,          DataType::kInt8,
    DataType::kUInt16,         DataType::kInt16,          DataType::kUInt32,
    DataType::kInt32,          DataType::kUInt64,         DataType::kInt64,
    DataType::kFloat16,        DataType::kBFloat16,       DataType::kFloat32,
    DataType::kFloat64,        DataType::kComplex32,      DataType::kComplex64,
    DataType::kComplex128,     DataType::kFloat8E4M3FN,   DataType::kFloat8E5M2,
    DataType::kFloat8E4M3FNUZ, DataType::kFloat8E5M2FNUZ, DataType::kFloat8E8M0FNU};
inline constexpr ReduceKind kAllKinds[] = {
    ReduceKind::kSum,   ReduceKind::kAvg,    ReduceKind::kProduct,
    ReduceKind::kMin,   ReduceKind::kMax,    ReduceKind::kBitAnd,
    ReduceKind::kBitOr, ReduceKind::kBitXor, ReduceKind::kPremulSum};

/// A binary floating-point format of 16 bits.
struct Format16 {
  int fraction_bits;
  int lowest_exponent;  // of normal numbers
};
inline constexpr Format16 kHalf{10, -14};
inline constexpr Format16 kBrain{7, -126};

inline float decode(Format16 format, std::uint16_t bits) {
  const int exponent_bits = 15 - format.fraction_bits;
  const int fraction = bits & ((1 << format.fraction_bits) - 1);
  const int exponent = (bits >> format.fraction_bits) & ((1 << exponent_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  double value = 0;
  if (exponent == (1 << exponent_bits) - 1) {
    value = fraction == 0 ? HUGE_VAL : std::nan("");
  } else if (exponent == 0) {
    value = std::ldexp(fraction, format.lowest_exponent - format.fraction_bits);
  } else {
    value = std::ldexp(fraction + (1 << format.fraction_bits),
                       exponent - 1 + format.lowest_exponent - format.fraction_bits);
  }
  return static_cast<float>(std::copysign(value, sign));
}

/// To nearest even. A NaN becomes the quiet NaN without payload.
inline std::uint16_t encode(Format16 format, float number) {
  const std::uint16_t sign = std::signbit(number) ? 0x8000 : 0;
  const int top = (1 << (15 - format.fraction_bits)) - 1;
  const auto infinity = static_cast<std::uint16_t>(top << format.fraction_bits);
  if (std::isnan(number)) return sign | infinity | (1 << (format.fraction_bits - 1));
  if (std::isinf(number)) return sign | infinity;
  const double value = std::fabs(static_cast<double>(number));
  if (value == 0) return sign;
  const int exponent = std::max(std::ilogb(value), format.lowest_exponent);
  const double units = std::nearbyint(std::ldexp(value, format.fraction_bits - exponent));
  // Counting in units of the last place runs through all finite numbers in order.
  const long code = static_cast<long>(units) +
                    (static_cast<long>(exponent - format.lowest_exponent) << format.fraction_bits);
  return sign | static_cast<std::uint16_t>(std::min<long>(code, infinity));
}

template <typename T>
T read(const void* base, std::size_t index) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(base) + index * sizeof(T), sizeof(T));
  return value;
}
template <typename T>
void write(void* base, std::size_t index, T value) {
  std::memcpy(static_cast<std::byte*>(base) + index * sizeof(T), &value, sizeof(T));
}

template <typename T>
T combine_floating(const std::vector<T>& in, ReduceOp op) {
  const T factor = op.kind == ReduceKind::kPremulSum ? static_cast<T>(op.factor) : T{1};
  volatile T result = in[0] * factor;  // volatile: no fused multiply-add here either
  for (std::size_t s = 1; s < in.size(); ++s) {
    const T old = result;
    volatile T next = in[s] * factor;
    const bool nan = std::isnan(old) || std::isnan(in[s]);
    switch (op.kind) {
      case ReduceKind::kProduct:
        result = old * next;
        break;
      case ReduceKind::kMin:
        result = nan ? std::numeric_limits<T>::quiet_NaN() : old < next ? old : T(next);
        break;
      case ReduceKind::kMax:
        result = nan ? std::numeric_limits<T>::quiet_NaN() : old > next ? old : T(next);
        break;
      default:
        result = old + next;
        break;
    }
  }
  return op.kind == ReduceKind::kAvg ? result / static_cast<T>(in.size()) : T(result);
}

template <typename T>
T combine_integer(const std::vector<T>& in, ReduceKind kind) {
  using Wide = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
  T result = in[0];
  for (std::size_t s = 1; s < in.size(); ++s) {
    const auto a = static_cast<std::uint64_t>(result);
    const auto b = static_cast<std::uint64_t>(in[s]);
    switch (kind) {
      case ReduceKind::kProduct:
        result = static_cast<T>(a * b);
        break;
      case ReduceKind::kMin:
        result = std::min(result, in[s]);
        break;
      case ReduceKind::kMax:
        result = std::max(result, in[s]);
        break;
      case ReduceKind::kBitAnd:
        result = static_cast<T>(a & b);
        break;
      case ReduceKind::kBitOr:
        result = static_cast<T>(a | b);
        break;
      case ReduceKind::kBitXor:
        result = static_cast<T>(a ^ b);
        break;
      default:
        result = static_cast<T>(a + b);
        break;
    }
  }
  if (kind != ReduceKind::kAvg) return result;
  return static_cast<T>(static_cast<Wide>(result) / static_cast<Wide>(in.size()));
}

inline bool combine_bool(const std::vector<bool>& in, ReduceKind kind) {
  const auto trues = static_cast<std::size_t>(std::count(in.begin(), in.end(), true));
  if (kind == ReduceKind::kBitXor) return trues % 2 == 1;
  const bool all =
      kind == ReduceKind::kProduct || kind == ReduceKind::kMin || kind == ReduceKind::kBitAnd;
  return all ? trues == in.size() : trues > 0;
}

/// Element `index` of every source. `values` is reused from call to call.
template <typename T>
const std::vector<T>& column(std::vector<T>& values, const std::vector<const void*>& sources,
                             std::size_t index) {
  values.clear();
  for (const void* source : sources) values.push_back(read<T>(source, index));
  return values;
}

inline void reference_16(void* out, const std::vector<const void*>& sources, std::size_t count,
                         Format16 format, ReduceOp op) {
  std::vector<float> values;
  for (std::size_t i = 0; i < count; ++i) {
    values.clear();
    for (const void* s : sources) values.push_back(decode(format, read<std::uint16_t>(s, i)));
    write(out, i, encode(format, combine_floating(values, op)));
  }
}

template <typename T>
void reference_plain(void* out, const std::vector<const void*>& sources, std::size_t count,
                     ReduceOp op) {
  std::vector<T> values;
  for (std::size_t i = 0; i < count; ++i) {
    if constexpr (std::is_floating_point_v<T>) {
      write(out, i, combine_floating(column(values, sources, i), op));
    } else {
      write(out, i, combine_integer(column(values, sources, i), op.kind));
    }
  }
}

template <typename T>
void reference_complex(void* out, const std::vector<const void*>& sources, std::size_t count,
                       ReduceOp op) {
  if (op.kind != ReduceKind::kProduct) return reference_plain<T>(out, sources, 2 * count, op);
  for (std::size_t i = 0; i < count; ++i) {
    T re = read<T>(sources[0], 2 * i);
    T im = read<T>(sources[0], 2 * i + 1);
    for (std::size_t s = 1; s < sources.size(); ++s) {
      const T r = read<T>(sources[s], 2 * i);
      const T j = read<T>(sources[s], 2 * i + 1);
      volatile T rr = re * r, ij = im * j, rj = re * j, ir = im * r;
      re = rr - ij;
      im = rj + ir;
    }
    write(out, 2 * i, re);
    write(out, 2 * i + 1, im);
  }
}

inline void reference_bool(void* out, const std::vector<const void*>& sources, std::size_t count,
                           ReduceKind kind) {
  for (std::size_t i = 0; i < count; ++i) {
    std::vector<bool> values;
    for (const void* s : sources) values.push_back(read<std::uint8_t>(s, i) != 0);
    write<std::uint8_t>(out, i, combine_bool(values, kind) ? 1 : 0);
  }
}

/// `out` may not be one of the sources.
inline void reference(void* out, const std::vector<const void*>& sources, std::size_t count,
                      DataType type, ReduceOp op) {
  switch (type) {
    case DataType::kBool:
      return reference_bool(out, sources, count, op.kind);
    case DataType::kUInt8:
      return reference_plain<std::uint8_t>(out, sources, count, op);
    case DataType::kInt8:
      return reference_plain<std::int8_t>(out, sources, count, op);
    case DataType::kUInt16:
      return reference_plain<std::uint16_t>(out, sources, count, op);
    case DataType::kInt16:
      return reference_plain<std::int16_t>(out, sources, count, op);
    case DataType::kUInt32:
      return reference_plain<std::uint32_t>(out, sources, count, op);
    case DataType::kInt32:
      return reference_plain<std::int32_t>(out, sources, count, op);
    case DataType::kUInt64:
      return reference_plain<std::uint64_t>(out, sources, count, op);
    case DataType::kInt64:
      return reference_plain<std::int64_t>(out, sources, count, op);
    case DataType::kFloat16:
      return reference_16(out, sources, count, kHalf, op);
    case DataType::kBFloat16:
      return reference_16(out, sources, count, kBrain, op);
    case DataType::kFloat32:
      return reference_plain<float>(out, sources, count, op);
    case DataType::kFloat64:
      return reference_plain<double>(out, sources, count, op);
    case DataType::kComplex64:
      return reference_complex<float>(out, sources, count, op);
    case DataType::kComplex128:
      return reference_complex<double>(out, sources, count, op);
    default:
      throw std::invalid_argument("no reference for this dtype");
  }
}

}  // namespace fvd::test
