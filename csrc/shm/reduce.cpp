#include "shm/reduce.h"

#include <algorithm>
#include <cstring>

#include "comm/error.h"
#include "shm/float_environment.h"
#include "shm/reduce_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

// As in reduce_kernels.inc: the product of complex numbers must not depend on the compiler.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

namespace fvd::shm {
namespace {

/// What a family offers, for messages.
const char* possible(Family family) noexcept {
  switch (family) {
    case Family::kBool:
      return "SUM, PRODUCT, MIN, MAX, BAND, BOR and BXOR";
    case Family::kInteger:
      return "SUM, AVG, PRODUCT, MIN, MAX, BAND, BOR and BXOR";
    case Family::kFloating:
      return "SUM, AVG, PRODUCT, MIN, MAX and PREMUL_SUM";
    case Family::kComplex:
      return "SUM, AVG, PRODUCT and PREMUL_SUM";
    case Family::kMovedOnly:
      return "no reduction";
  }
  return "";
}

template <typename T>
T load(const void* base, std::size_t index) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(base) + index * sizeof(T), sizeof(T));
  return value;
}

template <typename T>
void store(void* base, std::size_t index, T value) {
  std::memcpy(static_cast<std::byte*>(base) + index * sizeof(T), &value, sizeof(T));
}

/// Divides in 64 bits: the number of ranks need not fit into T.
template <typename T>
void divide_all(void* data, std::size_t count, std::size_t divisor) {
  using Wide = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
  const auto by = static_cast<Wide>(divisor);
  for (std::size_t i = 0; i < count; ++i) {
    store(data, i, static_cast<T>(static_cast<Wide>(load<T>(data, i)) / by));
  }
}

void divide(void* data, std::size_t count, DataType type, std::size_t divisor) {
  switch (type) {
    case DataType::kUInt8:
      return divide_all<std::uint8_t>(data, count, divisor);
    case DataType::kInt8:
      return divide_all<std::int8_t>(data, count, divisor);
    case DataType::kUInt16:
      return divide_all<std::uint16_t>(data, count, divisor);
    case DataType::kInt16:
      return divide_all<std::int16_t>(data, count, divisor);
    case DataType::kUInt32:
      return divide_all<std::uint32_t>(data, count, divisor);
    case DataType::kInt32:
      return divide_all<std::int32_t>(data, count, divisor);
    case DataType::kUInt64:
      return divide_all<std::uint64_t>(data, count, divisor);
    case DataType::kInt64:
      return divide_all<std::int64_t>(data, count, divisor);
    default:
      return;
  }
}

/// Sums a piece that stays in the nearest cache, then divides it: no vector divides integers.
void average_integers(Kernel sum, void* out, const void* const* sources, std::size_t source_count,
                      std::size_t count, DataType type) {
  constexpr std::size_t kMaxSources = 64;
  constexpr std::size_t kPieceBytes = 4096;
  const std::size_t size = element_size(type);
  if (source_count > kMaxSources) {  // rare; one pass less clever
    sum(out, sources, source_count, count, 1.0);
    return divide(out, count, type, source_count);
  }
  const void* shifted[kMaxSources];
  for (std::size_t at = 0; at < count; at += kPieceBytes / size) {
    const std::size_t piece = std::min(kPieceBytes / size, count - at);
    for (std::size_t s = 0; s < source_count; ++s) {
      shifted[s] = static_cast<const std::byte*>(sources[s]) + at * size;
    }
    void* to = static_cast<std::byte*>(out) + at * size;
    sum(to, shifted, source_count, piece, 1.0);
    divide(to, piece, type, source_count);
  }
}

template <typename T>
void complex_product(void* out, const void* const* sources, std::size_t source_count,
                     std::size_t count) {
  for (std::size_t i = 0; i < 2 * count; i += 2) {
    T real = load<T>(sources[0], i);
    T imaginary = load<T>(sources[0], i + 1);
    for (std::size_t s = 1; s < source_count; ++s) {
      const T r = load<T>(sources[s], i);
      const T j = load<T>(sources[s], i + 1);
      const T product = real * r - imaginary * j;
      imaginary = real * j + imaginary * r;
      real = product;
    }
    store(out, i, real);
    store(out, i + 1, imaginary);
  }
}

#if defined(__x86_64__)
bool has_f16c() noexcept {  // not every compiler's __builtin_cpu_supports knows it
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

KernelTable best_kernels() noexcept {
  for (const Isa isa : {Isa::kAvx512, Isa::kAvx2}) {
    if (const KernelTable table = kernels(isa)) return table;
  }
  return portable_kernel;
}

}  // namespace

KernelTable kernels(Isa isa) noexcept {
  if (isa == Isa::kPortable) return portable_kernel;
#if defined(__x86_64__)
  __builtin_cpu_init();  // may run before the constructor that would do it
  const bool avx2 = __builtin_cpu_supports("avx2") && has_f16c();
  if (isa == Isa::kAvx2 && avx2) return avx2_kernel;
  if (isa == Isa::kAvx512 && avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return avx512_kernel;
  }
#endif
  return nullptr;
}

void reduce_with(KernelTable table, void* out, const void* const* sources, std::size_t source_count,
                 std::size_t count, DataType type, ReduceOp op) {
  const FloatEnvironment environment;
  if (type == DataType::kComplex64 || type == DataType::kComplex128) {
    const bool narrow = type == DataType::kComplex64;
    if (op.kind == ReduceKind::kProduct) {
      return narrow ? complex_product<float>(out, sources, source_count, count)
                    : complex_product<double>(out, sources, source_count, count);
    }
    // All else treats both parts alike.
    type = narrow ? DataType::kFloat32 : DataType::kFloat64;
    count *= 2;
  }
  if (op.kind == ReduceKind::kAvg && family(type) == Family::kInteger) {
    return average_integers(table(type, ReduceKind::kSum), out, sources, source_count, count, type);
  }
  table(type, op.kind)(out, sources, source_count, count, op.factor);
}

void check_reducible(DataType type, ReduceKind kind) {
  FVD_CHECK(family(type) != Family::kMovedOnly, kUnsupported, name(kind), " of ", name(type),
            " is not possible: this dtype can be moved but not reduced; convert the tensor to a "
            "wider dtype first");
  FVD_CHECK(reducible(type, kind), kInvalidArgument, name(kind), " has no meaning for ", name(type),
            "; possible are ", possible(family(type)));
}

void reduce(void* out, std::span<const void* const> sources, std::size_t count, DataType type,
            ReduceOp op) {
  static const KernelTable table = best_kernels();
  check_reducible(type, op.kind);
  FVD_CHECK(!sources.empty(), kInvalidArgument, name(op.kind), " of no contributions");
  if (count == 0) return;  // pointers may be null then
  reduce_with(table, out, sources.data(), sources.size(), count, type, op);
}

}  // namespace fvd::shm
