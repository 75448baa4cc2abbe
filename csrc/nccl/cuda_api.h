// The CUDA runtime as a table of functions, filled from a library found at run time or by a test.
#pragma once

#include <cstddef>
#include <string>

#include "comm/options.h"
#include "nccl/abi.h"

namespace fvd::nccl {

/// None is null but where it says so. Calls go straight to the CUDA runtime: see its documentation.
struct CudaApi {
  // clang-format off
  CudaResult (*runtime_version)(int* version) = nullptr;
  const char* (*get_error_string)(CudaResult result) = nullptr;
  CudaResult (*get_last_error)() = nullptr;
  CudaResult (*get_device)(int* device) = nullptr;
  CudaResult (*set_device)(int device) = nullptr;
  CudaResult (*stream_create)(CudaStream* stream, unsigned flags, int priority) = nullptr;
  CudaResult (*stream_destroy)(CudaStream stream) = nullptr;
  CudaResult (*stream_wait_event)(CudaStream stream, CudaEvent event, unsigned flags) = nullptr;
  CudaResult (*stream_is_capturing)(CudaStream stream, CaptureStatus* status) = nullptr;
  CudaResult (*exchange_capture_mode)(CaptureMode* mode) = nullptr;
  CudaResult (*event_create)(CudaEvent* event, unsigned flags) = nullptr;
  CudaResult (*event_destroy)(CudaEvent event) = nullptr;
  CudaResult (*event_record)(CudaEvent event, CudaStream stream) = nullptr;
  CudaResult (*event_query)(CudaEvent event) = nullptr;
  CudaResult (*memcpy_async)(void* to, const void* from, std::size_t bytes, CopyKind kind, CudaStream stream) = nullptr;
  CudaResult (*malloc_async)(void** data, std::size_t bytes, CudaStream stream) = nullptr;
  CudaResult (*free_async)(void* data, CudaStream stream) = nullptr;
  // cudaStreamGetCaptureInfo as it is since CUDA 13, or else as it was in 12: one of the two is null.
  CudaResult (*capture_info)(CudaStream stream, CaptureStatus* status, unsigned long long* id, CudaGraph* graph, const void* nodes, const void* edges, std::size_t* count) = nullptr;
  CudaResult (*capture_info_12)(CudaStream stream, CaptureStatus* status, unsigned long long* id, CudaGraph* graph, const void* nodes, std::size_t* count) = nullptr;
  CudaResult (*malloc)(void** data, std::size_t bytes) = nullptr;
  CudaResult (*free)(void* data) = nullptr;
  CudaResult (*host_alloc)(void** data, std::size_t bytes, unsigned flags) = nullptr;
  CudaResult (*ipc_get_handle)(IpcHandle* handle, void* data) = nullptr;
  CudaResult (*ipc_open_handle)(void** data, IpcHandle handle, unsigned flags) = nullptr;
  CudaResult (*ipc_close_handle)(void* data) = nullptr;
  // cudaGetDriverEntryPointByVersion, which came with CUDA 12.5, or else the older one: one of the two is null.
  CudaResult (*driver_entry)(const char* symbol, void** function, unsigned version, unsigned long long flags, int* status) = nullptr;
  CudaResult (*driver_entry_12)(const char* symbol, void** function, unsigned long long flags, int* status) = nullptr;
  CudaResult (*user_object_create)(CudaUserObject* object, void* data, void (*destroy)(void*), unsigned references, unsigned flags) = nullptr;
  CudaResult (*graph_retain_user_object)(CudaGraph graph, CudaUserObject object, unsigned references, unsigned flags) = nullptr;
  // clang-format on

  int version = 0;   // 13000: 13.0
  std::string path;  // of the library; for messages
};

constexpr int kOldestCudaVersion = 12000;

/// The process's CUDA runtime. See find_library() for where it is looked for.
/// @throws Error(kUnsupported) listing what was tried
CudaApi load_cuda(const NcclOptions& options);

/// The driver's cuPointerGetAttributes. What an address has not is left as it was.
using PointerAttributes = CudaResult (*)(unsigned count, const PointerAttribute* which,
                                         void** values, std::uintptr_t address);

/// Null if there is no driver, or one without it.
PointerAttributes pointer_attributes(const CudaApi& cuda) noexcept;

/// A failure in CUDA's words. CUDA forgets it: else whoever next asks for the last error, as torch
/// does after each kernel, would take it for his own.
std::string taken_error(const CudaApi& cuda, CudaResult result);

/// @throws Error(kLibrary) with `what` and CUDA's words unless `result` is success
void check(const CudaApi& cuda, CudaResult result, const char* what);

/// Makes `device` the calling thread's for as long as it lives.
class DeviceScope {
 public:
  DeviceScope(const CudaApi& cuda, int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  const CudaApi& cuda_;
  int before_ = 0;
  bool changed_ = false;
};

/// Calls within that a capture on another thread would else forbid, or be ended by.
class RelaxedScope {
 public:
  explicit RelaxedScope(const CudaApi& cuda) noexcept : cuda_(cuda) {
    cuda_.exchange_capture_mode(&mode_);
  }
  ~RelaxedScope() { cuda_.exchange_capture_mode(&mode_); }
  RelaxedScope(const RelaxedScope&) = delete;
  RelaxedScope& operator=(const RelaxedScope&) = delete;

 private:
  const CudaApi& cuda_;
  CaptureMode mode_ = CaptureMode::kRelaxed;
};

/// Lets the calling thread query events and make calls that a capture on another thread would
/// otherwise be ended by. For threads of our own: never set back.
void relax_capture_rules(const CudaApi& cuda) noexcept;

}  // namespace fvd::nccl
