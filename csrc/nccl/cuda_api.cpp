#include "nccl/cuda_api.h"

#include "comm/error.h"
#include "nccl/library.h"

namespace fvd::nccl {
namespace {

CudaApi cuda_api_of(const Library& library) {
  CudaApi api;
  api.path = library.path();
  fill(library, "cudaRuntimeGetVersion", api.runtime_version);
  FVD_CHECK(api.runtime_version(&api.version) == CudaResult::kSuccess, kUnsupported,
            "its cudaRuntimeGetVersion fails");
  FVD_CHECK(api.version >= kOldestCudaVersion, kUnsupported, "it is CUDA ", api.version / 1000, ".",
            api.version / 10 % 100, "; needed is ", kOldestCudaVersion / 1000, " or newer");
  fill(library, "cudaGetErrorString", api.get_error_string);
  fill(library, "cudaGetDevice", api.get_device);
  fill(library, "cudaSetDevice", api.set_device);
  fill(library, "cudaStreamCreateWithPriority", api.stream_create);
  fill(library, "cudaStreamDestroy", api.stream_destroy);
  fill(library, "cudaStreamWaitEvent", api.stream_wait_event);
  fill(library, "cudaStreamIsCapturing", api.stream_is_capturing);
  fill(library, "cudaThreadExchangeStreamCaptureMode", api.exchange_capture_mode);
  fill(library, "cudaEventCreateWithFlags", api.event_create);
  fill(library, "cudaEventDestroy", api.event_destroy);
  fill(library, "cudaEventRecord", api.event_record);
  fill(library, "cudaEventQuery", api.event_query);
  fill(library, "cudaMemcpyAsync", api.memcpy_async);
  fill(library, "cudaMallocAsync", api.malloc_async);
  fill(library, "cudaFreeAsync", api.free_async);
  if (api.version >= 13000) {
    fill(library, "cudaStreamGetCaptureInfo", api.capture_info);
  } else {
    fill(library, "cudaStreamGetCaptureInfo_v2", api.capture_info_12);
  }
  fill(library, "cudaGetLastError", api.get_last_error);
  fill(library, "cudaMalloc", api.malloc);
  fill(library, "cudaFree", api.free);
  fill(library, "cudaHostAlloc", api.host_alloc);
  fill(library, "cudaIpcGetMemHandle", api.ipc_get_handle);
  fill(library, "cudaIpcOpenMemHandle", api.ipc_open_handle);
  fill(library, "cudaIpcCloseMemHandle", api.ipc_close_handle);
  if (api.version >= 12050) {
    fill(library, "cudaGetDriverEntryPointByVersion", api.driver_entry);
  } else {
    fill(library, "cudaGetDriverEntryPoint", api.driver_entry_12);
  }
  fill(library, "cudaUserObjectCreate", api.user_object_create);
  fill(library, "cudaGraphRetainUserObject", api.graph_retain_user_object);
  return api;
}

}  // namespace

CudaApi load_cuda(const NcclOptions& options) {
  LibrarySearch search;
  search.what = "CUDA runtime";
  search.given = options.cuda_library;
  search.option = "FASTVIDEO_DIST_CUDA_LIBRARY";
  search.sonames = {"libcudart.so.13", "libcudart.so.12"};
  if (!options.wheels.empty()) {
    search.folders = {options.wheels + "/nvidia/cu13/lib",
                      options.wheels + "/nvidia/cuda_runtime/lib"};
  }
  for (auto& folder : system_folders()) search.folders.push_back(std::move(folder));
  CudaApi api;
  search.accept = [&](const Library& library) { api = cuda_api_of(library); };
  find_library(search);
  return api;
}

std::string taken_error(const CudaApi& cuda, CudaResult result) {
  cuda.get_last_error();
  return text(cuda.get_error_string(result), " (CUDA error ", static_cast<int>(result), ")");
}

void check(const CudaApi& cuda, CudaResult result, const char* what) {
  FVD_CHECK(result == CudaResult::kSuccess, kLibrary, what, " failed: ", taken_error(cuda, result));
}

PointerAttributes pointer_attributes(const CudaApi& cuda) noexcept {
  constexpr const char* kSymbol = "cuPointerGetAttributes";
  void* function = nullptr;
  int status = 0;  // what is missing is told by a null function, too
  const CudaResult result =
      cuda.driver_entry != nullptr
          ? cuda.driver_entry(kSymbol, &function, kOldestCudaVersion, 0, &status)
          : cuda.driver_entry_12(kSymbol, &function, 0, &status);
  return result == CudaResult::kSuccess ? reinterpret_cast<PointerAttributes>(function) : nullptr;
}

DeviceScope::DeviceScope(const CudaApi& cuda, int device) : cuda_(cuda) {
  check(cuda_, cuda_.get_device(&before_), "cudaGetDevice");
  if (before_ == device) return;
  check(cuda_, cuda_.set_device(device), "cudaSetDevice");
  changed_ = true;
}

DeviceScope::~DeviceScope() {
  if (changed_) cuda_.set_device(before_);
}

void relax_capture_rules(const CudaApi& cuda) noexcept {
  CaptureMode mode = CaptureMode::kRelaxed;
  cuda.exchange_capture_mode(&mode);
}

}  // namespace fvd::nccl
