// NCCL as a table of functions, filled from a library found at run time or by a test.
#pragma once

#include <cstddef>
#include <string>

#include "comm/options.h"
#include "nccl/abi.h"

namespace fvd::nccl {

class Library;

/// None is null. Calls go straight to NCCL: see its documentation.
struct NcclApi {
  // clang-format off
  Result (*get_version)(int* version) = nullptr;
  Result (*get_unique_id)(UniqueId* id) = nullptr;
  const char* (*get_error_string)(Result result) = nullptr;
  const char* (*get_last_error)(Comm comm) = nullptr;
  Result (*comm_init_rank_config)(Comm* comm, int ranks, UniqueId id, int rank, CommConfig* config) = nullptr;
  Result (*comm_finalize)(Comm comm) = nullptr;
  Result (*comm_destroy)(Comm comm) = nullptr;
  Result (*comm_abort)(Comm comm) = nullptr;
  Result (*comm_get_async_error)(Comm comm, Result* state) = nullptr;
  Result (*group_start)() = nullptr;
  Result (*group_end)() = nullptr;
  Result (*all_reduce)(const void* in, void* out, std::size_t count, WireType type, WireOp op, Comm comm, CudaStream stream) = nullptr;
  Result (*reduce)(const void* in, void* out, std::size_t count, WireType type, WireOp op, int root, Comm comm, CudaStream stream) = nullptr;
  Result (*broadcast)(const void* in, void* out, std::size_t count, WireType type, int root, Comm comm, CudaStream stream) = nullptr;
  Result (*all_gather)(const void* in, void* out, std::size_t count, WireType type, Comm comm, CudaStream stream) = nullptr;
  Result (*reduce_scatter)(const void* in, void* out, std::size_t count, WireType type, WireOp op, Comm comm, CudaStream stream) = nullptr;
  Result (*send)(const void* data, std::size_t count, WireType type, int peer, Comm comm, CudaStream stream) = nullptr;
  Result (*recv)(void* data, std::size_t count, WireType type, int peer, Comm comm, CudaStream stream) = nullptr;
  Result (*create_premul_sum)(WireOp* op, void* factor, WireType type, ScalarResidence residence, Comm comm) = nullptr;
  Result (*destroy_op)(WireOp op, Comm comm) = nullptr;
  // clang-format on

  int version = 0;   // 22907: 2.29.7
  std::string path;  // of the library; for messages
};

/// Below it non-blocking communicators and their configuration are not what this room relies on.
constexpr int kOldestVersion = 21801;

/// "2.29.7"
std::string version_text(int version);

/// The process's NCCL. See find_library() for where it is looked for.
/// @throws Error(kUnsupported) listing what was tried
NcclApi load_nccl(const NcclOptions& options);

/// The table of `library`. @throws Error(kUnsupported) if its version is none of ours, or if it
/// lacks a function
NcclApi nccl_api_of(const Library& library);

}  // namespace fvd::nccl
