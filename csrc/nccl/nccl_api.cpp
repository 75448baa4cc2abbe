#include "nccl/nccl_api.h"

#include "comm/error.h"
#include "nccl/library.h"

namespace fvd::nccl {
std::string version_text(int version) {
  return text(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

NcclApi nccl_api_of(const Library& library) {
  NcclApi api;
  api.path = library.path();
  fill(library, "ncclGetVersion", api.get_version);
  FVD_CHECK(api.get_version(&api.version) == Result::kSuccess, kUnsupported,
            "its ncclGetVersion fails");
  FVD_CHECK(api.version >= kOldestVersion && api.version < 30000, kUnsupported, "it is NCCL ",
            version_text(api.version), "; needed is ", version_text(kOldestVersion),
            " or newer, and below 3");
  fill(library, "ncclGetUniqueId", api.get_unique_id);
  fill(library, "ncclGetErrorString", api.get_error_string);
  fill(library, "ncclGetLastError", api.get_last_error);
  fill(library, "ncclCommInitRankConfig", api.comm_init_rank_config);
  fill(library, "ncclCommFinalize", api.comm_finalize);
  fill(library, "ncclCommDestroy", api.comm_destroy);
  fill(library, "ncclCommAbort", api.comm_abort);
  fill(library, "ncclCommGetAsyncError", api.comm_get_async_error);
  fill(library, "ncclGroupStart", api.group_start);
  fill(library, "ncclGroupEnd", api.group_end);
  fill(library, "ncclAllReduce", api.all_reduce);
  fill(library, "ncclReduce", api.reduce);
  fill(library, "ncclBroadcast", api.broadcast);
  fill(library, "ncclAllGather", api.all_gather);
  fill(library, "ncclReduceScatter", api.reduce_scatter);
  fill(library, "ncclSend", api.send);
  fill(library, "ncclRecv", api.recv);
  fill(library, "ncclRedOpCreatePreMulSum", api.create_premul_sum);
  fill(library, "ncclRedOpDestroy", api.destroy_op);
  return api;
}

NcclApi load_nccl(const NcclOptions& options) {
  LibrarySearch search;
  search.what = "NCCL";
  search.given = options.library;
  search.option = "FASTVIDEO_DIST_NCCL_LIBRARY";
  search.sonames = {"libnccl.so.2"};
  if (!options.wheels.empty()) search.folders = {options.wheels + "/nvidia/nccl/lib"};
  for (auto& folder : system_folders()) search.folders.push_back(std::move(folder));
  NcclApi api;
  search.accept = [&](const Library& library) { api = nccl_api_of(library); };
  find_library(search);
  return api;
}

}  // namespace fvd::nccl
