// What NCCL and the CUDA runtime look like from outside: types and numbers of their binary
// interfaces, as far as this room uses them. Declared here so that no header of theirs is needed to
// build, and none of their names clashes where one is included.
//
// The numbers are fixed by the promises of compatibility of libnccl.so.2 and libcudart.so.12
// and 13.
#pragma once

#include <climits>
#include <cstddef>
#include <cstdint>

namespace fvd::nccl {

enum class Result : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
};

enum class WireType : int {
  kInt8 = 0,
  kUInt8 = 1,
  kInt32 = 2,
  kUInt32 = 3,
  kInt64 = 4,
  kUInt64 = 5,
  kFloat16 = 6,
  kFloat32 = 7,
  kFloat64 = 8,
  kBFloat16 = 9,
};

/// Values from kAvg on up to 0x7fffffff are made at run time (premultiplied sums).
enum class WireOp : int { kSum = 0, kProd = 1, kMax = 2, kMin = 3, kAvg = 4 };

enum class ScalarResidence : int { kDevice = 0, kHostImmediate = 1 };

struct UniqueId {
  char bytes[128];
};

struct CommObject;
using Comm = CommObject*;

/// Of a communicator. Only the fields that NCCL 2.18 knew: newer versions look at `size` and
/// `version` and take their own defaults for the rest.
struct CommConfig {
  static constexpr unsigned kMagic = 0xcafebeef;
  static constexpr unsigned kVersion = 21801;
  static constexpr int kUnset = INT_MIN;

  std::size_t size = sizeof(CommConfig);
  unsigned magic = kMagic;
  unsigned version = kVersion;
  int blocking = kUnset;
  int cga_cluster_size = kUnset;
  int min_ctas = kUnset;
  int max_ctas = kUnset;
  const char* net_name = nullptr;
  int split_share = kUnset;
};

enum class CudaResult : int { kSuccess = 0, kNotReady = 600 };
enum class CaptureStatus : int { kNone = 0, kActive = 1, kInvalidated = 2 };
enum class CaptureMode : int { kGlobal = 0, kThreadLocal = 1, kRelaxed = 2 };
enum class CopyKind : int { kDefault = 4 };

constexpr unsigned kEventDisableTiming = 2;
constexpr unsigned kStreamNonBlocking = 1;
constexpr unsigned kNoDestructorSync = 1;     // of a user object
constexpr unsigned kGraphUserObjectMove = 1;  // the graph takes the caller's reference

/// Stands for an allocation of device memory in other processes.
struct IpcHandle {
  char bytes[64];
  bool operator==(const IpcHandle&) const = default;
};
constexpr unsigned kIpcLazyPeerAccess = 1;
constexpr unsigned kHostPortable = 1;  // of pinned memory
constexpr unsigned kHostMapped = 2;

/// Of the driver: what it knows of an address.
enum class PointerAttribute : int {
  kBufferId = 7,  // of the allocation; never used again
  kIpcCapable = 10,
  kRangeStart = 11,  // of the allocation
  kRangeSize = 12,
};

struct StreamObject;
using CudaStream = StreamObject*;
struct EventObject;
using CudaEvent = EventObject*;
struct GraphObject;
using CudaGraph = GraphObject*;
struct UserObject;
using CudaUserObject = UserObject*;

}  // namespace fvd::nccl
