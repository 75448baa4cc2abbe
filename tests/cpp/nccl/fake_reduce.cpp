#include "nccl/fake_reduce.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

namespace fvd::test {
namespace {

using nccl::WireOp;
using nccl::WireType;

template <typename T>
T combine(T a, T b, WireOp op) {
  if (op == WireOp::kProd) return static_cast<T>(a * b);
  if constexpr (std::is_floating_point_v<T>) {
    if ((op == WireOp::kMin || op == WireOp::kMax) && (std::isnan(a) || std::isnan(b)))
      return std::numeric_limits<T>::quiet_NaN();
  }
  if (op == WireOp::kMin) return std::min(a, b);
  if (op == WireOp::kMax) return std::max(a, b);
  return static_cast<T>(a + b);
}

template <typename T, typename Sum, typename Load, typename Store>
void reduce_as(const std::vector<std::vector<char>>& inputs, char* out, std::size_t count,
               WireOp op, const char* factor, Load load, Store store) {
  T by{};
  if (factor != nullptr) std::memcpy(&by, factor, sizeof(by));
  for (std::size_t i = 0; i < count; ++i) {
    Sum sum{};
    for (std::size_t rank = 0; rank < inputs.size(); ++rank) {
      T raw;
      std::memcpy(&raw, inputs[rank].data() + i * sizeof(T), sizeof(T));
      Sum value = load(raw);
      if (factor != nullptr) value = static_cast<Sum>(value * load(by));
      sum = rank == 0 ? value : combine(sum, value, op);
    }
    if (op == WireOp::kAvg) sum = static_cast<Sum>(sum / static_cast<Sum>(inputs.size()));
    const T result = store(sum);
    std::memcpy(out + i * sizeof(T), &result, sizeof(T));
  }
}

template <typename T>
void reduce_plain(const std::vector<std::vector<char>>& in, char* out, std::size_t count, WireOp op,
                  const char* f) {
  reduce_as<T, T>(in, out, count, op, f, [](T v) { return v; }, [](T v) { return v; });
}

}  // namespace

void reduce_all(const std::vector<std::vector<char>>& in, char* out, std::size_t count,
                nccl::WireType type, nccl::WireOp op, const char* factor) {
  switch (type) {
    case WireType::kInt8:
      return reduce_plain<std::int8_t>(in, out, count, op, factor);
    case WireType::kUInt8:
      return reduce_plain<std::uint8_t>(in, out, count, op, factor);
    case WireType::kInt32:
      return reduce_plain<std::int32_t>(in, out, count, op, factor);
    case WireType::kUInt32:
      return reduce_plain<std::uint32_t>(in, out, count, op, factor);
    case WireType::kInt64:
      return reduce_plain<std::int64_t>(in, out, count, op, factor);
    case WireType::kUInt64:
      return reduce_plain<std::uint64_t>(in, out, count, op, factor);
    case WireType::kFloat32:
      return reduce_plain<float>(in, out, count, op, factor);
    case WireType::kFloat64:
      return reduce_plain<double>(in, out, count, op, factor);
    case WireType::kBFloat16:
      return reduce_as<std::uint16_t, float>(
          in, out, count, op, factor,
          [](std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); },
          [](float value) {
            const auto bits = std::bit_cast<std::uint32_t>(value);
            return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
          });
    case WireType::kFloat16:
      std::abort();  // no test reduces it
  }
}

std::size_t size_of(nccl::WireType type) {
  switch (type) {
    case nccl::WireType::kInt8:
    case nccl::WireType::kUInt8:
      return 1;
    case nccl::WireType::kFloat16:
    case nccl::WireType::kBFloat16:
      return 2;
    case nccl::WireType::kInt32:
    case nccl::WireType::kUInt32:
    case nccl::WireType::kFloat32:
      return 4;
    default:
      return 8;
  }
}

}  // namespace fvd::test
