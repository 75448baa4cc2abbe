// Ranks as threads, each with a fake GPU of its own: NcclCommunicator over the fakes.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "nccl/fake_cuda.h"
#include "nccl/fake_nccl.h"
#include "nccl/nccl_communicator.h"
#include "support/file_store.h"
#include "support/memory_store.h"
#include "support/shm_world.h"

namespace fvd::test {

class NcclWorld {
 public:
  explicit NcclWorld(int size) : control_(size) {}

  int size() const { return control_.size(); }
  ThreadWorld& control() { return control_; }
  const std::string folder() const { return folder_.path().string(); }

  /// To be called by all ranks, each in its thread.
  std::unique_ptr<Communicator> communicator(
      int rank, const GroupOptions& group, NcclCheck check,
      const std::function<nccl::Libraries()>& load = nullptr) {
    nccl::NcclGroupOptions options;
    options.group = group;
    options.device = rank;
    options.check = check;
    options.push = pushes && pushes(rank);
    options.watch_interval = std::chrono::milliseconds{5};
    const auto usual = [this] {
      return nccl::Libraries{fake_nccl(folder()), fake_cuda(), fake_kernels()};
    };
    // Of this rank's own device is the null stream that its calls without a stream go to.
    fake_cuda().set_device(rank);
    return nccl::make_communicator(load ? load : usual, store_,
                                   control_.communicator(*store_, rank, group), options);
  }

  /// Which ranks have FASTVIDEO_DIST_PUSH=1; null: none.
  std::function<bool(int rank)> pushes;

  MemoryStore& store() { return *store_; }

 private:
  TemporaryDirectory folder_;
  ThreadWorld control_;
  std::shared_ptr<MemoryStore> store_ = std::make_shared<MemoryStore>();
};

/// Waits until `stream` (null: the thread's device's) has done what is enqueued.
inline void synchronize(Stream stream = {}) {
  const auto cuda = fake_cuda();
  nccl::CaptureMode rules = nccl::CaptureMode::kRelaxed;  // another rank may capture
  cuda.exchange_capture_mode(&rules);
  nccl::CudaEvent event = nullptr;
  cuda.event_create(&event, nccl::kEventDisableTiming);
  cuda.event_record(event, static_cast<nccl::CudaStream>(stream.handle));
  while (cuda.event_query(event) == nccl::CudaResult::kNotReady)
    std::this_thread::sleep_for(std::chrono::microseconds{20});
  cuda.event_destroy(event);
  cuda.exchange_capture_mode(&rules);
}

/// A transport of streams as one whose calls return when they are done, which is what the contract
/// suite asks.
class Synchronous final : public Communicator {
 public:
  explicit Synchronous(Communicator& inner) : inner_(inner) {}

  int rank() const noexcept override { return inner_.rank(); }
  int size() const noexcept override { return inner_.size(); }
  void barrier(const Call& call) override { inner_.barrier(call); }
  void broadcast(Block data, DataType type, int root, const Call& call) override {
    run([&] { inner_.broadcast(data, type, root, call); });
  }
  void all_reduce(const void* in, void* out, std::size_t count, DataType type, ReduceOp op,
                  const Call& call) override {
    run([&] { inner_.all_reduce(in, out, count, type, op, call); });
  }
  void reduce(const void* in, void* out, std::size_t count, DataType type, ReduceOp op, int root,
              const Call& call) override {
    run([&] { inner_.reduce(in, out, count, type, op, root, call); });
  }
  void all_gather(ConstBlock in, std::span<const Block> out, DataType type,
                  const Call& call) override {
    run([&] { inner_.all_gather(in, out, type, call); });
  }
  void gather(ConstBlock in, std::span<const Block> out, DataType type, int root,
              const Call& call) override {
    run([&] { inner_.gather(in, out, type, root, call); });
  }
  void scatter(std::span<const ConstBlock> in, Block out, DataType type, int root,
               const Call& call) override {
    run([&] { inner_.scatter(in, out, type, root, call); });
  }
  void reduce_scatter(std::span<const ConstBlock> in, void* out, DataType type, ReduceOp op,
                      const Call& call) override {
    run([&] { inner_.reduce_scatter(in, out, type, op, call); });
  }
  void all_to_all(std::span<const ConstBlock> in, std::span<const Block> out, DataType type,
                  bool even, const Call& call) override {
    run([&] { inner_.all_to_all(in, out, type, even, call); });
  }
  void all_to_all(std::span<const ConstBlocks> in, std::span<const Blocks> out, DataType type,
                  bool even, const Call& call) override {
    run([&] { inner_.all_to_all(in, out, type, even, call); });
  }
  void all_to_all_runs(std::span<const ConstBlocks> in, std::span<const Blocks> out, DataType type,
                       const Call& call) override {
    run([&] { inner_.all_to_all_runs(in, out, type, call); });
  }
  std::unique_ptr<Transfer> send(ConstBlock data, DataType type, int destination, int tag,
                                 const Call& call) override {
    return std::make_unique<Waiting>(inner_.send(data, type, destination, tag, call));
  }
  std::unique_ptr<Transfer> recv(Block data, DataType type, int source, int tag,
                                 const Call& call) override {
    return std::make_unique<Waiting>(inner_.recv(data, type, source, tag, call));
  }
  void abort(const std::string& reason) noexcept override { inner_.abort(reason); }
  std::uint64_t sequence_number() const noexcept override { return inner_.sequence_number(); }

 private:
  /// Memory of a call is the caller's again when the call returns, whatever way it does.
  template <typename Body>
  void run(Body&& body) {
    try {
      body();
      synchronize();
      inner_.check();
    } catch (...) {
      synchronize();
      throw;
    }
  }

  class Waiting final : public Transfer {
   public:
    explicit Waiting(std::unique_ptr<Transfer> inner) : inner_(std::move(inner)) {}
    bool done() override { return inner_->done(); }
    void wait(const Call& call) override {
      inner_->wait(call);
      while (!inner_->done()) std::this_thread::sleep_for(std::chrono::microseconds{20});
      inner_->wait(call);  // throws if that was no good end
    }
    void expire(std::chrono::milliseconds waited) override { inner_->expire(waited); }
    int source() const override { return inner_->source(); }

   private:
    const std::unique_ptr<Transfer> inner_;
  };

  Communicator& inner_;
};

}  // namespace fvd::test
