#include "nccl/nccl_communicator.h"

#include <algorithm>
#include <vector>

#include "nccl/core.h"

namespace fvd::nccl {
namespace {

/// One block per rank as the lists of blocks that all_to_all takes.
template <typename Byte>
std::vector<std::span<const BasicBlock<Byte>>> one_each(std::span<const BasicBlock<Byte>> blocks) {
  std::vector<std::span<const BasicBlock<Byte>>> lists;
  for (std::size_t i = 0; i < blocks.size(); ++i) lists.push_back(blocks.subspan(i, 1));
  return lists;
}

/// `body(data, bytes)` for each run of each block; runs that lie end to end stay runs.
template <typename Byte, typename Body>
void for_runs(std::span<const BasicBlock<Byte>> blocks, Body&& body) {
  for (const auto& block : blocks)
    for (std::size_t run = 0; run < block.runs; ++run)
      body(block.data + run * block.run_stride, block.run_bytes);
}

class NcclCommunicator final : public Communicator {
 public:
  explicit NcclCommunicator(std::unique_ptr<Core> core)
      : core_(std::move(core)), context_(*core_->context()), nccl_(context_.nccl) {}

  int rank() const noexcept override { return context_.rank; }
  int size() const noexcept override { return context_.size; }

  void barrier(const Call& call) override { core_->barrier(call); }

  void broadcast(Block data, DataType type, int root, const Call& call) override {
    check_root(root);
    Staging staging(context_, "broadcast");
    const ConstBlock source{data.data, data.runs, data.run_bytes, data.run_stride};
    const auto place = rank() == root ? staging.input({&source, 1}) : staging.output({&data, 1});
    const std::size_t bytes = data.bytes();
    core_->run(moved(Op::kBroadcast, bytes, type, root, call), call, staging, bytes == 0,
               [&](Comm comm, CudaStream stream) {
                 void* memory = staging.at(place);
                 check(nccl_.broadcast(memory, memory, bytes, WireType::kUInt8, root, comm, stream),
                       "ncclBroadcast", comm);
               });
  }

  void all_reduce(const void* in, void* out, std::size_t count, DataType type, ReduceOp op,
                  const Call& call) override {
    const auto wire = reduction("all_reduce", type, op);
    Staging staging(context_, "all_reduce");
    core_->run(reduced(Op::kAllReduce, count, type, op, -1, call), call, staging, count == 0,
               [&](Comm comm, CudaStream stream) {
                 const MadeOp made(*this, wire, op, comm);
                 check(nccl_.all_reduce(in, out, count * wire.per_element, wire.type, made.op, comm,
                                        stream),
                       "ncclAllReduce", comm);
               });
  }

  void reduce(const void* in, void* out, std::size_t count, DataType type, ReduceOp op, int root,
              const Call& call) override {
    check_root(root);
    const auto wire = reduction("reduce", type, op);
    Staging staging(context_, "reduce");
    core_->run(reduced(Op::kReduce, count, type, op, root, call), call, staging, count == 0,
               [&](Comm comm, CudaStream stream) {
                 const MadeOp made(*this, wire, op, comm);
                 check(nccl_.reduce(in, out, count * wire.per_element, wire.type, made.op, root,
                                    comm, stream),
                       "ncclReduce", comm);
               });
  }

  void all_gather(ConstBlock in, std::span<const Block> out, DataType type,
                  const Call& call) override {
    const std::size_t bytes = in.bytes();
    check_blocks(out, bytes, "all_gather's output");
    Staging staging(context_, "all_gather");
    const auto from = staging.input({&in, 1});
    const auto to = staging.output(out);
    core_->run(moved(Op::kAllGather, bytes, type, -1, call), call, staging, bytes == 0,
               [&](Comm comm, CudaStream stream) {
                 check(nccl_.all_gather(staging.at(from), staging.at(to), bytes, WireType::kUInt8,
                                        comm, stream),
                       "ncclAllGather", comm);
               });
  }

  void gather(ConstBlock in, std::span<const Block> out, DataType type, int root,
              const Call& call) override {
    check_root(root);
    const std::size_t bytes = in.bytes();
    const bool here = rank() == root;
    if (here) check_blocks(out, bytes, "gather's output");
    Staging staging(context_, "gather");
    const auto from = staging.input({&in, 1});
    std::vector<Staging::Place> to;
    for (int peer = 0; here && peer < size(); ++peer)
      to.push_back(staging.output({&out[static_cast<std::size_t>(peer)], 1}));
    core_->run(moved(Op::kGather, bytes, type, root, call), call, staging, bytes == 0,
               [&](Comm comm, CudaStream stream) {
                 if (here) {
                   for (int peer = 0; peer < size(); ++peer)
                     receive(staging.at(to[static_cast<std::size_t>(peer)]), bytes, peer, comm,
                             stream);
                 }
                 send_to(staging.at(from), bytes, root, comm, stream);
               });
  }

  void scatter(std::span<const ConstBlock> in, Block out, DataType type, int root,
               const Call& call) override {
    check_root(root);
    const std::size_t bytes = out.bytes();
    const bool here = rank() == root;
    if (here) check_blocks(in, bytes, "scatter's input");
    Staging staging(context_, "scatter");
    const auto to = staging.output({&out, 1});
    std::vector<Staging::Place> from;
    for (int peer = 0; here && peer < size(); ++peer)
      from.push_back(staging.input({&in[static_cast<std::size_t>(peer)], 1}));
    core_->run(moved(Op::kScatter, bytes, type, root, call), call, staging, bytes == 0,
               [&](Comm comm, CudaStream stream) {
                 if (here) {
                   for (int peer = 0; peer < size(); ++peer)
                     send_to(staging.at(from[static_cast<std::size_t>(peer)]), bytes, peer, comm,
                             stream);
                 }
                 receive(staging.at(to), bytes, root, comm, stream);
               });
  }

  void reduce_scatter(std::span<const ConstBlock> in, void* out, DataType type, ReduceOp op,
                      const Call& call) override {
    const auto wire = reduction("reduce_scatter", type, op);
    check_blocks(in, in.empty() ? 0 : in[0].bytes(), "reduce_scatter's input");
    const std::size_t count = in[0].bytes() / element_size(type);
    Staging staging(context_, "reduce_scatter");
    const auto from = staging.input(in);
    core_->run(reduced(Op::kReduceScatter, count, type, op, -1, call), call, staging, count == 0,
               [&](Comm comm, CudaStream stream) {
                 const MadeOp made(*this, wire, op, comm);
                 check(nccl_.reduce_scatter(staging.at(from), out, count * wire.per_element,
                                            wire.type, made.op, comm, stream),
                       "ncclReduceScatter", comm);
               });
  }

  void all_to_all(std::span<const ConstBlock> in, std::span<const Block> out, DataType type,
                  bool even, const Call& call) override {
    all_to_all(one_each(in), one_each(out), type, even, call);
  }

  void all_to_all(std::span<const ConstBlocks> in, std::span<const Blocks> out, DataType type,
                  bool even, const Call& call) override {
    const auto ranks = static_cast<std::size_t>(size());
    const Core::Lengths lengths = lengths_of(in, out);
    if (even) {
      check_blocks(in, lengths.sent[0], "all_to_all's input");
      check_blocks(out, lengths.sent[0], "all_to_all's output");
    }
    Staging staging(context_, "all_to_all");
    std::vector<Staging::Place> from, to;
    for (std::size_t peer = 0; peer < ranks; ++peer) {
      from.push_back(staging.input(in[peer]));
      to.push_back(staging.output(out[peer]));
    }
    Record record = moved(Op::kAllToAll, even ? lengths.sent[0] : 0, type, -1, call);
    record.even = even ? 1 : 0;
    core_->run(
        record, call, staging, even && lengths.sent[0] == 0,
        [&](Comm comm, CudaStream stream) {
          for (int peer = 0; peer < size(); ++peer) {
            const auto p = static_cast<std::size_t>(peer);
            send_to(staging.at(from[p]), lengths.sent[p], peer, comm, stream);
            receive(staging.at(to[p]), lengths.expected[p], peer, comm, stream);
          }
        },
        even ? nullptr : &lengths);
  }

  // Nothing is staged: who sees to it that the runs match sees to it that they are few.
  void all_to_all_runs(std::span<const ConstBlocks> in, std::span<const Blocks> out, DataType type,
                       const Call& call) override {
    const Core::Lengths lengths = lengths_of(in, out);
    Staging staging(context_, "all_to_all");
    Record record = moved(Op::kAllToAll, 0, type, -1, call);
    record.even = 0;
    core_->run(
        record, call, staging, false,
        [&](Comm comm, CudaStream stream) {
          for (int peer = 0; peer < size(); ++peer) {
            const auto p = static_cast<std::size_t>(peer);
            for_runs(in[p], [&](const std::byte* data, std::size_t bytes) {
              send_to(data, bytes, peer, comm, stream);
            });
            for_runs(out[p], [&](std::byte* data, std::size_t bytes) {
              receive(data, bytes, peer, comm, stream);
            });
          }
        },
        &lengths);
  }

  std::optional<std::string> push(std::span<const Block> outputs, DataType type,
                                  const std::function<void(const Reached&)>& write,
                                  const Call& call) override {
    Record record = moved(Op::kAllToAll, 0, type, -1, call);
    record.even = 0;
    return core_->push(record, call, outputs, write);
  }
  bool may_push() const override { return core_->may_push(); }

  std::unique_ptr<Transfer> send(ConstBlock data, DataType type, int destination, int tag,
                                 const Call& call) override {
    const Block same{const_cast<std::byte*>(data.data), data.runs, data.run_bytes, data.run_stride};
    return transfer(true, same, type, destination, tag, call);
  }

  std::unique_ptr<Transfer> recv(Block data, DataType type, int source, int tag,
                                 const Call& call) override {
    FVD_CHECK(source != kAnySource, kUnsupported, "fastvideo: recv on ", context_.where(),
              " from any rank: NCCL receives from a rank that is named");
    return transfer(false, data, type, source, tag, call);
  }

  void abort(const std::string& reason) noexcept override {
    core_->break_with(Kind::kAborted,
                      text("aborted by ", context_.rank_text(context_.rank), ": ", reason));
  }

  void check() const override {
    context_.fate.wait_settled();
    context_.fate.check();
  }

  void copy(const void* from, void* to, std::size_t bytes, const Call& call) override {
    if (bytes == 0) return;
    const DeviceScope device(context_.cuda, context_.device);
    core_->guarded("a copy on the device", [&] {
      nccl::check(context_.cuda,
                  context_.cuda.memcpy_async(to, from, bytes, CopyKind::kDefault, raw(call.stream)),
                  "cudaMemcpyAsync");
    });
  }

  std::function<void()> checker() const override {
    return [context = core_->context()] {
      context->fate.wait_settled();
      context->fate.check();
    };
  }

  bool capturing(Stream stream) const override { return core_->capturing(raw(stream)); }

  std::uint64_t sequence_number() const noexcept override { return core_->sequence(); }

 private:
  /// The operation of one call: NCCL's own, or a premultiplied sum made for it.
  struct MadeOp {
    MadeOp(const NcclCommunicator& self, const WireReduction& wire, const ReduceOp& wanted,
           Comm comm)
        : op(wire.op), nccl_(self.nccl_), comm_(comm), made_(wire.premultiplied) {
      if (!made_) return;
      WireScalar scalar = wire_scalar(wanted, wire.type);
      self.check(nccl_.create_premul_sum(&op, scalar.bytes, wire.type,
                                         ScalarResidence::kHostImmediate, comm),
                 "ncclRedOpCreatePreMulSum", comm);
    }
    // As soon as the call that takes it has returned, NCCL needs it no more.
    ~MadeOp() {
      if (made_) nccl_.destroy_op(op, comm_);
    }
    MadeOp(const MadeOp&) = delete;
    MadeOp& operator=(const MadeOp&) = delete;

    WireOp op;

   private:
    const NcclApi& nccl_;
    const Comm comm_;
    const bool made_;
  };

  void check(Result result, const char* what, Comm comm) const {
    context_.check_nccl(result, what, comm);
  }

  Record moved(Op op, std::size_t bytes, DataType type, int root, const Call& call) const {
    return {.count = bytes / element_size(type),
            .layout = call.layout,
            .root = root,
            .op = op,
            .type = type,
            .has_type = 1};
  }
  Record reduced(Op op, std::size_t count, DataType type, ReduceOp reduce, int root,
                 const Call& call) const {
    return {.count = count,
            .layout = call.layout,
            .factor = reduce.factor,
            .root = root,
            .op = op,
            .type = type,
            .reduce = reduce.kind,
            .has_type = 1,
            .has_reduce = 1};
  }

  WireReduction reduction(const char* operation, DataType type, ReduceOp op) const {
    try {
      return wire_reduction(type, op);
    } catch (const Error& error) {
      throw Error(error.kind(),
                  text("fastvideo: ", operation, " on ", context_.where(), ": ", error.what()));
    }
  }

  // A length of nothing is nothing on both sides: their lengths agree.
  void send_to(const void* data, std::size_t bytes, int peer, Comm comm, CudaStream stream) const {
    if (bytes == 0) return;
    check(nccl_.send(data, bytes, WireType::kUInt8, peer, comm, stream), "ncclSend", comm);
  }
  void receive(void* data, std::size_t bytes, int peer, Comm comm, CudaStream stream) const {
    if (bytes == 0) return;
    check(nccl_.recv(data, bytes, WireType::kUInt8, peer, comm, stream), "ncclRecv", comm);
  }

  std::unique_ptr<Transfer> transfer(bool sends, Block data, DataType type, int peer, int tag,
                                     const Call& call) {
    const char* what = sends ? "send to" : "recv from";
    FVD_CHECK(peer >= 0 && peer < size(), kInvalidArgument, what, " rank ", peer, " on ",
              context_.where(), "; it must be from 0 to ", size() - 1);
    FVD_CHECK(peer != rank(), kInvalidArgument, what, " rank ", peer, " on ", context_.where(),
              ": that is this rank itself");
    FVD_CHECK(tag >= 0, kInvalidArgument, what, " rank ", peer, " on ", context_.where(), ": tag ",
              tag, " is negative");
    context_.fate.check_usable(context_.where());
    return core_->guarded(sends ? "send" : "recv",
                          [&] { return core_->lanes().start(sends, data, type, peer, tag, call); });
  }

  void check_root(int root) const {
    FVD_CHECK(root >= 0 && root < size(), kInvalidArgument, "root ", root, " on ", context_.where(),
              "; it must be a rank from 0 to ", size() - 1);
  }

  Core::Lengths lengths_of(std::span<const ConstBlocks> in, std::span<const Blocks> out) const {
    const auto ranks = static_cast<std::size_t>(size());
    FVD_CHECK(in.size() == ranks && out.size() == ranks, kInvalidArgument, "all_to_all on ",
              context_.where(), ": ", in.size(), " input and ", out.size(), " output blocks, ",
              ranks, " of each are needed");
    Core::Lengths lengths;
    for (std::size_t peer = 0; peer < ranks; ++peer) {
      lengths.sent.push_back(bytes_of(in[peer]));
      lengths.expected.push_back(bytes_of(out[peer]));
    }
    const auto me = static_cast<std::size_t>(rank());
    FVD_CHECK(lengths.sent[me] == lengths.expected[me], kInvalidArgument, "all_to_all on ",
              context_.where(), ": it sends itself ", lengths.sent[me], " bytes but expects ",
              lengths.expected[me]);
    return lengths;
  }

  template <typename Blocks>
  void check_blocks(const Blocks& blocks, std::size_t bytes, const char* what) const {
    FVD_CHECK(blocks.size() == static_cast<std::size_t>(size()), kInvalidArgument, what, " on ",
              context_.where(), " has ", blocks.size(), " blocks, ", size(), " are needed");
    for (const auto& block : blocks) {
      FVD_CHECK(bytes_of(block) == bytes, kInvalidArgument, what, " on ", context_.where(),
                " has a block of ", bytes_of(block), " bytes, the others have ", bytes);
    }
  }

  const std::unique_ptr<Core> core_;
  const Context& context_;
  const NcclApi& nccl_;
};

}  // namespace

Libraries load_libraries(const NcclOptions& options) {
  return {load_nccl(options), load_cuda(options), {}};
}

std::unique_ptr<Communicator> make_communicator(const std::function<Libraries()>& load,
                                                std::shared_ptr<Store> store,
                                                std::unique_ptr<Communicator> control,
                                                const NcclGroupOptions& options) {
  return std::make_unique<NcclCommunicator>(
      std::make_unique<Core>(load, std::move(store), std::move(control), options));
}

}  // namespace fvd::nccl
