// "fastvideo", the c10d backend: tensors in, calls on a Communicator out.
//
// The methods keep c10d's names. Where their meaning is torch's, torch.distributed documents it;
// here stands what is ours. Common to all collectives:
//   Tensors: dense and strided, all on the CPU or on one GPU; others are refused (tensor_view.h).
//            What is not contiguous goes through a contiguous copy. Zero elements and one rank are
//            fine.
//   GPUs:    the first call on one connects the ranks, all of which must make it. From then on the
//            group is of that device. See device_group.h for streams and memory.
//   Threads: with asyncOp false and nothing queued the call runs on the calling thread, otherwise
//            on the group's own, in order. Callers must not hold the interpreter's lock.
//   Errors:  wrong arguments throw (ValueError, TypeError, NotImplementedError) before anything is
//            sent and leave the group usable. What goes wrong between ranks is DistBackendError:
//            thrown by a call that ran on the calling thread, else by Work::wait.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "c10d/device_group.h"
#include "c10d/group_runner.h"
#include "c10d/host.h"
#include "c10d/tensor_view.h"
#include "c10d/torch_compat.h"
#include "c10d/work.h"
#include "comm/communicator.h"
#include "comm/options.h"
#include "comm/store.h"

namespace fvd::c10d_ {

constexpr const char* kBackendName = "fastvideo";

/// Of one group. The creator copies it, so that one object may serve several groups.
struct FastVideoOptions final : ::c10d::Backend::Options {
  explicit FastVideoOptions(std::chrono::milliseconds timeout = kBackendDefaultTimeout)
      : ::c10d::Backend::Options(kBackendName, timeout) {}

  // Not marked override: torch 2.11 and 2.12 have no such method.
  virtual c10::intrusive_ptr<::c10d::Backend::Options> clone() const {
    return c10::make_intrusive<FastVideoOptions>(*this);
  }
};

/// Makes a group's communicator for one device. Collective over the group.
using CommunicatorFactory = std::function<std::unique_ptr<Communicator>(
    c10::Device, std::shared_ptr<Store>, int rank, int size, const GroupOptions&)>;

class FastVideoBackend final : public ::c10d::Backend {
 public:
  using Work = ::c10d::Work;
  using Tensors = std::vector<at::Tensor>;

  /// Joins the group: collective over its ranks, and blocking. `host` must outlive everything.
  /// @throws ValueError for bad options, DistBackendError if not all ranks come.
  FastVideoBackend(c10::intrusive_ptr<::c10d::Store> store, int rank, int size,
                   c10::intrusive_ptr<FastVideoOptions> options, CommunicatorFactory factory,
                   const Host& host);

  /// As shutdown().
  ~FastVideoBackend() override;

  // Life and settings (backend.cpp)
  const std::string getBackendName() const override { return kBackendName; }
  c10::intrusive_ptr<::c10d::Backend::Options> getBackendOptions() override { return options_; }
  c10::intrusive_ptr<FastVideoOptions> options() const { return options_; }
  bool supportsCoalescing() const override { return true; }
  /// Connects the ranks' GPUs now; the CPU's side is connected since the constructor.
  void eagerConnectSingleDevice(at::Device device) override;
  void setTimeout(std::chrono::milliseconds timeout) override;
  void setSequenceNumberForGroup() override {}  // always begins at 0 on all ranks
  std::uint64_t getSequenceNumberForGroup() override { return sequence_; }
  void waitForPendingWorks() override;
  void enableCollectivesTiming() override {}
  ::c10d::ErrorType getError() override;

  /// Breaks the group on all ranks, at once and without waiting for anybody.
  void abort() override;

  /// Leaves the group: gives queued work 2 s to end, then aborts it. Idempotent. Later calls throw.
  void shutdown() override;

  // For the ops
  /// Where in this group an `operation` is, for messages: a literal.
  Site site(const char* operation) const { return {operation, label_, rank_}; }

  /// Runs `body` as this group's next collective and returns when it is done.
  void run_in_order(const GroupRunner::Body& body);

  /// The same on the GPU of `memory`: enqueues `body` on the caller's current stream and returns.
  void run_on_device(const char* operation, const CallMemory& memory,
                     const GroupRunner::Body& body);

  /// Which way the last exchange of tensors on a GPU took: "push", or "nccl: " and why; empty if
  /// there was none.
  void note_exchange(const std::string& path);
  std::string exchange_path() const;

  // Groups made of this one (backend_split.cpp)
  bool supportsSplitting() const override { return true; }

  /// The group of `ranks` of this one, in that order; null on ranks that are not among them. Joins
  /// as the constructor does: collective over `ranks`. torch asks once for each type of device; the
  /// second time it gets the same object. GPUs are connected by the first call on one.
  /// @throws ValueError for ranks that this group does not have, DistBackendError
  c10::intrusive_ptr<::c10d::Backend> split(
      const c10::intrusive_ptr<::c10d::Store>& store, const std::vector<int>& ranks,
      const c10::intrusive_ptr<::c10d::Backend::Options>& options) override;

  // Reductions (backend_reduce.cpp)
  WorkPtr allreduce(Tensors& tensors, const ::c10d::AllreduceOptions& opts = {}) override;
  WorkPtr allreduce_coalesced(Tensors& tensors,
                              const ::c10d::AllreduceCoalescedOptions& opts = {}) override;
  WorkPtr reduce(Tensors& tensors, const ::c10d::ReduceOptions& opts = {}) override;

  /// The inputs may differ in size from rank to rank of the list, if all ranks give the same sizes.
  WorkPtr reduce_scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                         const ::c10d::ReduceScatterOptions& opts = {}) override;

  /// `input` has size() times the elements of `output`, in any shape: concatenated or stacked.
  WorkPtr _reduce_scatter_base(at::Tensor& output, at::Tensor& input,
                               const ::c10d::ReduceScatterOptions& opts = {}) override;
  WorkPtr reduce_scatter_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const ::c10d::ReduceScatterOptions& opts = {}) override;

  // Copies from one to all and from all to one or all (backend_gather.cpp)
  WorkPtr broadcast(Tensors& tensors, const ::c10d::BroadcastOptions& opts = {}) override;

  /// The outputs may differ in size, if all ranks give the same sizes.
  WorkPtr allgather(std::vector<Tensors>& outputs, Tensors& inputs,
                    const ::c10d::AllgatherOptions& opts = {}) override;

  /// `output` has size() times the elements of `input`, in any shape: concatenated or stacked.
  WorkPtr _allgather_base(at::Tensor& output, at::Tensor& input,
                          const ::c10d::AllgatherOptions& opts = {}) override;
  WorkPtr allgather_into_tensor_coalesced(Tensors& outputs, Tensors& inputs,
                                          const ::c10d::AllgatherOptions& opts = {}) override;
  WorkPtr gather(std::vector<Tensors>& outputs, Tensors& inputs,
                 const ::c10d::GatherOptions& opts = {}) override;
  WorkPtr scatter(Tensors& outputs, std::vector<Tensors>& inputs,
                  const ::c10d::ScatterOptions& opts = {}) override;

  // Exchanges and barriers (backend_exchange.cpp)
  /// Even if both split vectors are empty, on all ranks; else rows of dimension 0 by the vectors.
  WorkPtr alltoall_base(at::Tensor& output, at::Tensor& input, std::vector<int64_t>& output_splits,
                        std::vector<int64_t>& input_splits,
                        const ::c10d::AllToAllOptions& opts = {}) override;
  WorkPtr alltoall(Tensors& outputs, Tensors& inputs,
                   const ::c10d::AllToAllOptions& opts = {}) override;
  WorkPtr barrier(const ::c10d::BarrierOptions& opts = {}) override;

  /// A barrier; its timeout names the missing ranks. `wait_all_ranks` makes no difference.
  void monitoredBarrier(const ::c10d::BarrierOptions& opts, bool wait_all_ranks = false) override;

  // Point to point, beside the order of the collectives (backend_p2p.cpp)
  WorkPtr send(Tensors& tensors, int destination, int tag) override;
  WorkPtr recv(Tensors& tensors, int source, int tag) override;
  WorkPtr recvAnysource(Tensors& tensors, int tag) override;

  /// From here on no call of this thread blocks; endCoalescing gives one work for all of them.
  void startCoalescing() override;
  WorkPtr endCoalescing() override;

 private:
  /// What one collective brings to submit().
  struct Request {
    Site site;
    ::c10d::OpType type;
    const char* title;  // for the profiler
    std::chrono::milliseconds timeout;
    bool async;
    CallMemory memory;

    Request(Site where, ::c10d::OpType type, const char* title, std::chrono::milliseconds timeout,
            bool async)
        : site(where), type(type), title(title), timeout(timeout), async(async) {
      site.memory = &memory;
    }
    Request(const Request&) = delete;  // the site points into it
  };

  Request request(const char* operation, ::c10d::OpType type, const char* title,
                  std::chrono::milliseconds timeout, bool async) const;
  int checked_root(const Site& site, int64_t root) const;
  const at::Tensor& only(const Site& site, const Tensors& tensors, const char* what) const;

  /// Runs or queues `body`; see the head of this file.
  WorkPtr submit(const Request& request, Tensors outputs, GroupRunner::Body body);
  WorkPtr submit_to_device(const Request& request, Tensors outputs, const GroupRunner::Body& body);

  std::unique_ptr<Communicator> make_device_communicator(
      c10::Device device, const DeviceConnection::Interrupt& interrupt);
  WorkPtr transfer(::c10d::OpType type, Tensors& tensors, int peer, int tag);
  bool coalescing() const;
  void note_coalesced(const WorkPtr& work);

  c10::intrusive_ptr<FastVideoOptions> options_of_split(
      const std::vector<int>& ranks, const c10::intrusive_ptr<::c10d::Backend::Options>& asked);

  const c10::intrusive_ptr<FastVideoOptions> options_;
  const std::string label_;  // the group's name in messages
  std::atomic<std::chrono::milliseconds> timeout_;
  std::atomic<std::uint64_t> sequence_{0};
  std::shared_ptr<GroupRunner> runner_;
  const c10::intrusive_ptr<::c10d::Store> store_;
  const CommunicatorFactory factory_;
  int device_attempts_ = 0;  // each meets under keys of its own
  std::shared_ptr<DeviceGroup> device_;

  /// The group that was split off last, until torch has asked for it a second time.
  struct Split {
    std::string name;
    c10::weak_intrusive_ptr<::c10d::Backend> backend;
  };
  std::mutex split_mutex_;
  std::optional<Split> last_split_;

  mutable std::mutex path_mutex_;
  std::string exchange_path_;

  mutable std::mutex coalescing_mutex_;
  std::atomic<bool> coalescing_open_{false};
  std::thread::id coalescing_thread_;
  std::vector<WorkPtr> coalesced_;
};

}  // namespace fvd::c10d_
