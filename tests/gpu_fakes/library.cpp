// libnccl and libcudart in one: a shared library with their names over the fakes of tests/cpp/nccl,
// for whoever loads libraries by path. Of the environment it reads
//   FAKE_NCCL_VERSION  what ncclGetVersion says, 22907 if unset
//   FAKE_NCCL_FOLDER   where data changes hands, the same empty folder for all ranks
// Beside it has the table of kernels, and counts the bytes of device memory that are read or
// written by kernels, copies, and both ends of sends and receives.
#include <atomic>
#include <cstdlib>

#include "cuda/fake_kernels.h"
#include "nccl/fake_cuda.h"
#include "nccl/fake_memory.h"
#include "nccl/fake_nccl.h"

namespace {

using namespace fvd::nccl;

const NcclApi& nccl() {
  static const NcclApi api = [] {
    fvd::test::FakeNcclFaults faults;
    if (const char* version = std::getenv("FAKE_NCCL_VERSION")) faults.version = std::atoi(version);
    fvd::test::set_faults(faults);
    const char* folder = std::getenv("FAKE_NCCL_FOLDER");
    return fvd::test::fake_nccl(folder == nullptr ? "/nonexistent" : folder,
                                fvd::test::Between::kProcesses);
  }();
  return api;
}
const CudaApi& cuda() {
  static const CudaApi api = [] {
    fvd::test::share_memory_between_processes();
    return fvd::test::fake_cuda();
  }();
  return api;
}

std::atomic<long> moved{0};

}  // namespace

extern "C" {
const void* fake_kernels() { return &fvd::test::fake_kernel_table(); }
long fake_launches() { return fvd::test::launches().count; }
long fake_moved_bytes() { return moved + fvd::test::launches().bytes; }
void fake_fail_next_launch() { fvd::test::fail_next_launch(); }
long fake_rank_waits() { return fvd::test::rank_waits(); }
long fake_open_memory() { return fvd::test::open_memory(); }
void fake_refuse_to_open_on(int device) { fvd::test::refuse_to_open_on(device); }
void fake_set_shareable(void* data, bool shareable) { fvd::test::set_shareable(data, shareable); }
long fake_event_queries() { return fvd::test::event_queries(); }

// clang-format off
Result ncclGetVersion(int* v) { return nccl().get_version(v); }
Result ncclGetUniqueId(UniqueId* i) { return nccl().get_unique_id(i); }
const char* ncclGetErrorString(Result r) { return nccl().get_error_string(r); }
const char* ncclGetLastError(Comm c) { return nccl().get_last_error(c); }
Result ncclCommInitRankConfig(Comm* c, int n, UniqueId i, int r, CommConfig* g) { return nccl().comm_init_rank_config(c, n, i, r, g); }
Result ncclCommFinalize(Comm c) { return nccl().comm_finalize(c); }
Result ncclCommDestroy(Comm c) { return nccl().comm_destroy(c); }
Result ncclCommAbort(Comm c) { return nccl().comm_abort(c); }
Result ncclCommGetAsyncError(Comm c, Result* r) { return nccl().comm_get_async_error(c, r); }
Result ncclGroupStart() { return nccl().group_start(); }
Result ncclGroupEnd() { return nccl().group_end(); }
Result ncclAllReduce(const void* i, void* o, std::size_t n, WireType t, WireOp p, Comm c, CudaStream s) { return nccl().all_reduce(i, o, n, t, p, c, s); }
Result ncclReduce(const void* i, void* o, std::size_t n, WireType t, WireOp p, int r, Comm c, CudaStream s) { return nccl().reduce(i, o, n, t, p, r, c, s); }
Result ncclBroadcast(const void* i, void* o, std::size_t n, WireType t, int r, Comm c, CudaStream s) { return nccl().broadcast(i, o, n, t, r, c, s); }
Result ncclAllGather(const void* i, void* o, std::size_t n, WireType t, Comm c, CudaStream s) { return nccl().all_gather(i, o, n, t, c, s); }
Result ncclReduceScatter(const void* i, void* o, std::size_t n, WireType t, WireOp p, Comm c, CudaStream s) { return nccl().reduce_scatter(i, o, n, t, p, c, s); }
Result ncclSend(const void* d, std::size_t n, WireType t, int p, Comm c, CudaStream s) { moved += static_cast<long>(n); return nccl().send(d, n, t, p, c, s); }
Result ncclRecv(void* d, std::size_t n, WireType t, int p, Comm c, CudaStream s) { moved += static_cast<long>(n); return nccl().recv(d, n, t, p, c, s); }
Result ncclRedOpCreatePreMulSum(WireOp* o, void* f, WireType t, ScalarResidence r, Comm c) { return nccl().create_premul_sum(o, f, t, r, c); }
Result ncclRedOpDestroy(WireOp o, Comm c) { return nccl().destroy_op(o, c); }

CudaResult cudaRuntimeGetVersion(int* v) { return cuda().runtime_version(v); }
const char* cudaGetErrorString(CudaResult r) { return cuda().get_error_string(r); }
CudaResult cudaGetLastError() { return cuda().get_last_error(); }
CudaResult cudaGetDevice(int* d) { return cuda().get_device(d); }
CudaResult cudaSetDevice(int d) { return cuda().set_device(d); }
CudaResult cudaStreamCreateWithPriority(CudaStream* s, unsigned f, int p) { return cuda().stream_create(s, f, p); }
CudaResult cudaStreamDestroy(CudaStream s) { return cuda().stream_destroy(s); }
CudaResult cudaStreamWaitEvent(CudaStream s, CudaEvent e, unsigned f) { return cuda().stream_wait_event(s, e, f); }
CudaResult cudaStreamIsCapturing(CudaStream s, CaptureStatus* c) { return cuda().stream_is_capturing(s, c); }
CudaResult cudaThreadExchangeStreamCaptureMode(CaptureMode* m) { return cuda().exchange_capture_mode(m); }
CudaResult cudaEventCreateWithFlags(CudaEvent* e, unsigned f) { return cuda().event_create(e, f); }
CudaResult cudaEventDestroy(CudaEvent e) { return cuda().event_destroy(e); }
CudaResult cudaEventRecord(CudaEvent e, CudaStream s) { return cuda().event_record(e, s); }
CudaResult cudaEventQuery(CudaEvent e) { return cuda().event_query(e); }
CudaResult cudaMemcpyAsync(void* t, const void* f, std::size_t n, CopyKind k, CudaStream s) { moved += static_cast<long>(2 * n); return cuda().memcpy_async(t, f, n, k, s); }
CudaResult cudaMallocAsync(void** d, std::size_t n, CudaStream s) { return cuda().malloc_async(d, n, s); }
CudaResult cudaFreeAsync(void* d, CudaStream s) { return cuda().free_async(d, s); }
CudaResult cudaMalloc(void** d, std::size_t n) { return cuda().malloc(d, n); }
CudaResult cudaFree(void* d) { return cuda().free(d); }
CudaResult cudaHostAlloc(void** d, std::size_t n, unsigned f) { return cuda().host_alloc(d, n, f); }
CudaResult cudaIpcGetMemHandle(IpcHandle* h, void* d) { return cuda().ipc_get_handle(h, d); }
CudaResult cudaIpcOpenMemHandle(void** d, IpcHandle h, unsigned f) { return cuda().ipc_open_handle(d, h, f); }
CudaResult cudaIpcCloseMemHandle(void* d) { return cuda().ipc_close_handle(d); }
CudaResult cudaGetDriverEntryPointByVersion(const char* s, void** f, unsigned v, unsigned long long g, int* r) { return cuda().driver_entry(s, f, v, g, r); }
CudaResult cudaStreamGetCaptureInfo(CudaStream s, CaptureStatus* c, unsigned long long* i, CudaGraph* g, const void* n, const void* e, std::size_t* k) { return cuda().capture_info(s, c, i, g, n, e, k); }
CudaResult cudaUserObjectCreate(CudaUserObject* o, void* d, void (*f)(void*), unsigned n, unsigned g) { return cuda().user_object_create(o, d, f, n, g); }
CudaResult cudaGraphRetainUserObject(CudaGraph g, CudaUserObject o, unsigned n, unsigned f) { return cuda().graph_retain_user_object(g, o, n, f); }

void fake_set_capturing(CudaStream s, bool c) { fvd::test::set_capturing(s, c); }
// clang-format on
}
