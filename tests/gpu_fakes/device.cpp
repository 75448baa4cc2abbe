// Makes torch believe in GPUs: streams and events are those of the fake runtime in library.cpp, and
// a tensor "on cuda" is memory of the CPU (compute.cpp), or a view of that of a tensor there. To be
// loaded with torch.ops.load_library before anybody asks torch for a real GPU.
//
// Of the environment it reads FASTVIDEO_DIST_CUDA_LIBRARY, the path of library.cpp's library.
#include "gpu_fakes/device.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "nccl/abi.h"

namespace {

using fvd::nccl::CudaEvent;
using fvd::nccl::CudaResult;
using fvd::nccl::CudaStream;

template <typename Function>
Function cuda(const char* name) {
  static void* const library = dlopen(std::getenv("FASTVIDEO_DIST_CUDA_LIBRARY"), RTLD_NOW);
  TORCH_CHECK(library != nullptr, "no fake CUDA runtime: ", dlerror());
  return reinterpret_cast<Function>(dlsym(library, name));
}
void check(CudaResult result) {
  TORCH_CHECK(result == CudaResult::kSuccess, "the fake CUDA runtime fails");
}

/// What torch was told about memory: uses of other streams than the one it was allocated for.
std::atomic<long> recorded_uses{0};
std::mutex uses_mutex;
std::map<const void*, std::set<c10::StreamId>> uses_of;  // guarded by uses_mutex

CudaStream handle(c10::StreamId id) { return reinterpret_cast<CudaStream>(id); }

// A stream's id is its handle.
struct FakeGpu final : c10::impl::DeviceGuardImplInterface {
  using Stream = c10::Stream;
  using Device = c10::Device;

  static thread_local std::map<c10::DeviceIndex, c10::StreamId> current;

  c10::DeviceType type() const override { return at::kCUDA; }
  Device getDevice() const override {
    int index = 0;
    check(cuda<CudaResult (*)(int*)>("cudaGetDevice")(&index));
    return {at::kCUDA, static_cast<c10::DeviceIndex>(index)};
  }
  void uncheckedSetDevice(Device device) const noexcept override {
    cuda<CudaResult (*)(int)>("cudaSetDevice")(device.index());
  }
  void setDevice(Device device) const override { uncheckedSetDevice(device); }
  Device exchangeDevice(Device device) const override {
    const auto before = getDevice();
    uncheckedSetDevice(device);
    return before;
  }
  Stream getStream(Device device) const override {
    return Stream(Stream::UNSAFE, device, current[device.index()]);
  }
  Stream getDefaultStream(Device device) const override {
    return Stream(Stream::UNSAFE, device, 0);
  }
  Stream getStreamFromGlobalPool(Device device, bool) const override {
    CudaStream stream = nullptr;
    check(cuda<CudaResult (*)(CudaStream*, unsigned, int)>("cudaStreamCreateWithPriority")(&stream,
                                                                                           1, 0));
    return Stream(Stream::UNSAFE, device, reinterpret_cast<c10::StreamId>(stream));
  }
  Stream getNewStream(Device device, int) const override {
    return getStreamFromGlobalPool(device, false);
  }
  Stream exchangeStream(Stream stream) const override {
    auto& id = current[stream.device_index()];
    const Stream before(Stream::UNSAFE, stream.device(), id);
    id = stream.id();
    return before;
  }
  void* getStreamNativeHandle(const Stream stream) const override {
    return reinterpret_cast<void*>(stream.id());
  }
  void destroyEvent(void* event, c10::DeviceIndex) const noexcept override {
    if (event != nullptr)
      cuda<CudaResult (*)(CudaEvent)>("cudaEventDestroy")(static_cast<CudaEvent>(event));
  }
  void record(void** event, const Stream& stream, c10::DeviceIndex,
              const c10::EventFlag) const override {
    if (*event == nullptr) {
      check(cuda<CudaResult (*)(CudaEvent*, unsigned)>("cudaEventCreateWithFlags")(
          reinterpret_cast<CudaEvent*>(event), 2));
    }
    check(cuda<CudaResult (*)(CudaEvent, CudaStream)>("cudaEventRecord")(
        static_cast<CudaEvent>(*event), reinterpret_cast<CudaStream>(stream.id())));
  }
  void block(void* event, const Stream& stream) const override {
    if (event == nullptr) return;
    check(cuda<CudaResult (*)(CudaStream, CudaEvent, unsigned)>("cudaStreamWaitEvent")(
        reinterpret_cast<CudaStream>(stream.id()), static_cast<CudaEvent>(event), 0));
  }
  bool queryEvent(void* event) const override {
    return event == nullptr || cuda<CudaResult (*)(CudaEvent)>("cudaEventQuery")(
                                   static_cast<CudaEvent>(event)) == CudaResult::kSuccess;
  }
  void synchronizeStream(const Stream& stream) const override {
    void* event = nullptr;
    record(&event, stream, stream.device_index(), c10::EventFlag::PYTORCH_DEFAULT);
    while (!queryEvent(event)) {
    }
    destroyEvent(event, 0);
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 8; }
  void recordDataPtrOnStream(const c10::DataPtr& data, const Stream& stream) const override {
    ++recorded_uses;
    const std::lock_guard lock(uses_mutex);
    uses_of[data.get()].insert(stream.id());
  }
  // Not marked override: torch 2.11 has no such method.
  virtual bool isStreamCapturing(const Stream& stream) const {
    auto status = fvd::nccl::CaptureStatus::kNone;
    check(cuda<CudaResult (*)(CudaStream, fvd::nccl::CaptureStatus*)>("cudaStreamIsCapturing")(
        handle(stream.id()), &status));
    return status != fvd::nccl::CaptureStatus::kNone;
  }
};
thread_local std::map<c10::DeviceIndex, c10::StreamId> FakeGpu::current;

const c10::impl::DeviceGuardImplRegistrar registrar(at::kCUDA, new FakeGpu);

at::Tensor on_gpu(const at::Tensor& memory, int64_t index) {
  const c10::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
  return at::for_blob(memory.data_ptr(), memory.sizes())
      .strides(memory.strides())
      .deleter([memory](void*) {})
      .options(memory.options().device(device))
      .target_device(device)
      .make_tensor();
}

/// Waits for the current stream of a GPU.
void synchronize(int64_t index) {
  const FakeGpu gpu;
  gpu.synchronizeStream(
      gpu.getStream(c10::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index))));
}

int64_t uses() { return recorded_uses; }

/// Whether what the current stream of a GPU gets counts as captured; it runs nevertheless.
void set_capturing(int64_t index, bool capturing) {
  const auto stream =
      fake_gpu::current_stream(c10::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index)));
  cuda<void (*)(CudaStream, bool)>("fake_set_capturing")(handle(stream.id()), capturing);
}

/// A new stream of a GPU, as a handle; and the one that is current from now on.
int64_t new_stream(int64_t index) {
  const FakeGpu gpu;
  return gpu
      .getStreamFromGlobalPool(c10::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index)), false)
      .id();
}
void use_stream(int64_t index, int64_t id) {
  const c10::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
  FakeGpu().exchangeStream(c10::Stream(c10::Stream::UNSAFE, device, id));
}

/// Waits for a stream of a GPU, by its handle.
void synchronize_stream(int64_t handle) {
  const c10::Device device(at::kCUDA, 0);
  FakeGpu().synchronizeStream(c10::Stream(c10::Stream::UNSAFE, device, handle));
}

TORCH_LIBRARY(fake_gpu, library) {
  library.def("on_gpu(Tensor memory, int index) -> Tensor", &on_gpu);
  library.def("synchronize(int index) -> ()", &synchronize);
  library.def("uses() -> int", &uses);
  library.def("set_capturing(int index, bool capturing) -> ()", &set_capturing);
  library.def("new_stream(int index) -> int", &new_stream);
  library.def("use_stream(int index, int id) -> ()", &use_stream);
  library.def("synchronize_stream(int handle) -> ()", &synchronize_stream);
}

}  // namespace

namespace fake_gpu {

c10::Stream current_stream(c10::Device device) { return FakeGpu().getStream(device); }

void wait_for_stream(c10::Device device) { FakeGpu().synchronizeStream(current_stream(device)); }

void* allocate(std::size_t bytes, c10::Device device) {
  void* memory = nullptr;
  check(cuda<CudaResult (*)(void**, std::size_t, CudaStream)>("cudaMallocAsync")(
      &memory, std::max<std::size_t>(bytes, 1), handle(current_stream(device).id())));
  return memory;
}

void release(void* memory, const c10::Stream& stream) {
  const FakeGpu gpu;
  std::set<c10::StreamId> others;
  {
    const std::lock_guard lock(uses_mutex);
    if (const auto found = uses_of.extract(memory)) others = found.mapped();
  }
  for (const c10::StreamId id : others) {
    void* event = nullptr;
    gpu.record(&event, c10::Stream(c10::Stream::UNSAFE, stream.device(), id), 0,
               c10::EventFlag::PYTORCH_DEFAULT);
    gpu.block(event, stream);
    gpu.destroyEvent(event, 0);
  }
  check(cuda<CudaResult (*)(void*, CudaStream)>("cudaFreeAsync")(memory, handle(stream.id())));
}

}  // namespace fake_gpu
