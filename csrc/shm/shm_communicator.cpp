#include "shm/shm_communicator.h"

#include <mutex>
#include <vector>

#include "comm/error.h"
#include "shm/domain.h"
#include "shm/exchange.h"
#include "shm/group.h"
#include "shm/mailbox.h"
#include "shm/reduce.h"
#include "shm/reduction.h"

namespace fvd::shm {
namespace {

/// One block per rank, as the lists of blocks an Exchange takes. Without an allocation for the
/// usual group.
template <typename Byte>
class OneEach {
  using List = std::span<const BasicBlock<Byte>>;
  static constexpr std::size_t kFew = 16;

 public:
  explicit OneEach(std::span<const BasicBlock<Byte>> blocks)
      : size_(blocks.size()), many_(size_ > kFew ? size_ : 0) {
    for (std::size_t i = 0; i < size_; ++i) data()[i] = blocks.subspan(i, 1);
  }
  operator std::span<const List>() { return {data(), size_}; }

 private:
  List* data() { return many_.empty() ? few_ : many_.data(); }

  std::size_t size_;
  List few_[kFew];
  std::vector<List> many_;
};

class ShmCommunicator final : public Communicator {
 public:
  explicit ShmCommunicator(std::unique_ptr<Group> group) : group_(std::move(group)) {}

  ~ShmCommunicator() override {
    if (mailbox_ == nullptr) return;
    if (!group_->domain().usable()) {
      Mailbox::forget(std::move(mailbox_));
      return;
    }
    mailbox_->close();
    group_->also_drain(Mailbox::drained(*group_));
  }

  int rank() const noexcept override { return group_->rank(); }
  int size() const noexcept override { return group_->size(); }

  void barrier(const Call& call) override {
    run({.op = Op::kBarrier}, call, [&] {
      group_->announce();
      group_->wait_announced();
    });
  }

  void broadcast(Block data, DataType type, int root, const Call& call) override {
    check_root(root);
    const ConstBlock from{data.data, data.runs, data.run_bytes, data.run_stride};
    // The root sends and receives nothing; the others receive one block, at the root's place.
    const ConstBlocks source(&from, 1);
    std::vector<Blocks> receive(static_cast<std::size_t>(rank() == root ? 0 : size()));
    if (rank() != root) receive[static_cast<std::size_t>(root)] = {&data, 1};
    Exchange exchange;
    if (rank() == root) exchange.send = {&source, 1};
    exchange.receive = receive;
    exchange.same_for_all = true;
    exchange.sender = root;
    exchange.largest = data.bytes();
    run(moved(Op::kBroadcast, data.bytes(), type, root), call,
        [&] { run_exchange(*group_, exchange); });
  }

  void all_reduce(const void* in, void* out, std::size_t count, DataType type, ReduceOp op,
                  const Call& call) override {
    check_reduction("all_reduce", type, op);
    run(reduced(Op::kAllReduce, count, type, op, -1), call,
        [&] { run_all_reduce(*group_, in, out, count, type, op, -1); });
  }

  void reduce(const void* in, void* out, std::size_t count, DataType type, ReduceOp op, int root,
              const Call& call) override {
    check_root(root);
    check_reduction("reduce", type, op);
    run(reduced(Op::kReduce, count, type, op, root), call,
        [&] { run_all_reduce(*group_, in, out, count, type, op, root); });
  }

  void all_gather(ConstBlock in, std::span<const Block> out, DataType type,
                  const Call& call) override {
    check_blocks(out, in.bytes(), "all_gather's output");
    const ConstBlocks source(&in, 1);
    OneEach<std::byte> receive(out);
    Exchange exchange;
    exchange.send = {&source, 1};
    exchange.receive = receive;
    exchange.same_for_all = true;
    exchange.largest = in.bytes();
    run(moved(Op::kAllGather, in.bytes(), type, -1), call,
        [&] { run_exchange(*group_, exchange); });
  }

  void gather(ConstBlock in, std::span<const Block> out, DataType type, int root,
              const Call& call) override {
    check_root(root);
    if (rank() == root) check_blocks(out, in.bytes(), "gather's output");
    const ConstBlocks source(&in, 1);
    OneEach<std::byte> receive(out);
    Exchange exchange;
    exchange.send = {&source, 1};
    if (rank() == root) exchange.receive = receive;
    exchange.same_for_all = true;
    exchange.receiver = root;
    exchange.largest = in.bytes();
    run(moved(Op::kGather, in.bytes(), type, root), call, [&] { run_exchange(*group_, exchange); });
  }

  void scatter(std::span<const ConstBlock> in, Block out, DataType type, int root,
               const Call& call) override {
    check_root(root);
    if (rank() == root) check_blocks(in, out.bytes(), "scatter's input");
    OneEach<const std::byte> send(in);
    std::vector<Blocks> receive(static_cast<std::size_t>(size()));
    receive[static_cast<std::size_t>(root)] = {&out, 1};
    Exchange exchange;
    if (rank() == root) exchange.send = send;
    exchange.receive = receive;
    exchange.sender = root;
    exchange.largest = out.bytes();
    run(moved(Op::kScatter, out.bytes(), type, root), call,
        [&] { run_exchange(*group_, exchange); });
  }

  void reduce_scatter(std::span<const ConstBlock> in, void* out, DataType type, ReduceOp op,
                      const Call& call) override {
    check_reduction("reduce_scatter", type, op);
    check_blocks(in, in.empty() ? 0 : in[0].bytes(), "reduce_scatter's input");
    run(reduced(Op::kReduceScatter, in[0].bytes() / element_size(type), type, op, -1), call,
        [&] { run_reduce_scatter(*group_, in, out, type, op); });
  }

  void all_to_all(std::span<const ConstBlock> in, std::span<const Block> out, DataType type,
                  bool even, const Call& call) override {
    all_to_all(OneEach<const std::byte>(in), OneEach<std::byte>(out), type, even, call);
  }

  void all_to_all(std::span<const ConstBlocks> in, std::span<const Blocks> out, DataType type,
                  bool even, const Call& call) override {
    FVD_CHECK(in.size() == static_cast<std::size_t>(size()) && out.size() == in.size(),
              kInvalidArgument, "all_to_all on ", group_->where(), ": ", in.size(), " input and ",
              out.size(), " output blocks, ", size(), " of each are needed");
    const std::size_t bytes = bytes_of(in[0]);
    if (even) {
      check_blocks(in, bytes, "all_to_all's input");
      check_blocks(out, bytes, "all_to_all's output");
    }
    Exchange exchange;
    exchange.send = in;
    exchange.receive = out;
    exchange.largest = bytes;
    Record record = moved(Op::kAllToAll, even ? bytes : 0, type, -1);
    record.even = even;
    run(record, call, [&] {
      if (even) {
        run_exchange(*group_, exchange);
      } else {
        run_uneven_exchange(*group_, exchange, element_size(type));
      }
    });
  }

  std::unique_ptr<Transfer> send(ConstBlock data, DataType type, int destination, int tag,
                                 const Call&) override {
    check_peer("send to", destination, tag);
    return mailbox().send(data, type, destination, tag);
  }

  std::unique_ptr<Transfer> recv(Block data, DataType type, int source, int tag,
                                 const Call&) override {
    if (source != kAnySource) check_peer("recv from", source, tag);
    FVD_CHECK(size() > 1, kInvalidArgument, "recv on ", group_->where(),
              ": there is nobody to send");
    return mailbox().recv(data, type, source, tag);
  }

  void abort(const std::string& reason) noexcept override {
    group_->break_with(Kind::kAborted,
                       text("aborted by ", group_->describe_member(rank()), ": ", reason));
  }

  void check() const override { group_->check_unbroken(); }

  void check_member(int member) const override { group_->check_there(member); }

  std::uint64_t sequence_number() const noexcept override {
    return static_cast<std::uint64_t>(group_->sequence());
  }

 private:
  static Record moved(Op op, std::size_t bytes, DataType type, int root) {
    Record record{.op = op, .type = type, .has_type = true, .root = root};
    record.count = bytes / element_size(type);
    return record;
  }
  static Record reduced(Op op, std::size_t count, DataType type, ReduceOp reduce, int root) {
    return {.op = op,
            .type = type,
            .reduce = reduce.kind,
            .has_type = true,
            .has_reduce = true,
            .root = root,
            .count = count,
            .factor = reduce.factor};
  }

  /// A collective from begin to finish; whatever it throws breaks the group.
  template <typename Body>
  void run(const Record& record, const Call& call, Body&& body) {
    group_->begin(record, call);
    try {
      body();
    } catch (const Error& error) {
      group_->break_with(error);
      throw;
    } catch (...) {
      group_->break_with(Kind::kAborted, group_->attempt() + " was interrupted");
      throw;
    }
    group_->finish();
  }

  void check_reduction(const char* operation, DataType type, ReduceOp op) const {
    try {
      check_reducible(type, op.kind);
    } catch (const Error& error) {
      throw Error(error.kind(),
                  text("fastvideo: ", operation, " on ", group_->where(), ": ", error.what()));
    }
  }

  void check_root(int root) const {
    FVD_CHECK(root >= 0 && root < size(), kInvalidArgument, "root ", root, " on ", group_->where(),
              "; it must be a rank from 0 to ", size() - 1);
  }

  void check_peer(const char* what, int peer, int tag) const {
    FVD_CHECK(peer >= 0 && peer < size(), kInvalidArgument, what, " rank ", peer, " on ",
              group_->where(), "; it must be from 0 to ", size() - 1);
    FVD_CHECK(peer != rank(), kInvalidArgument, what, " rank ", peer, " on ", group_->where(),
              ": that is this rank itself");
    FVD_CHECK(tag >= 0, kInvalidArgument, what, " rank ", peer, " on ", group_->where(), ": tag ",
              tag, " is negative");
  }

  template <typename Blocks>
  void check_blocks(const Blocks& blocks, std::size_t bytes, const char* what) const {
    FVD_CHECK(blocks.size() == static_cast<std::size_t>(size()), kInvalidArgument, what, " on ",
              group_->where(), " has ", blocks.size(), " blocks, ", size(), " are needed");
    for (const auto& block : blocks) {
      FVD_CHECK(bytes_of(block) == bytes, kInvalidArgument, what, " on ", group_->where(),
                " has a block of ", bytes_of(block), " bytes, the others have ", bytes);
    }
  }

  Mailbox& mailbox() {
    group_->check_usable();
    try {
      std::call_once(mailbox_once_, [&] { mailbox_ = std::make_shared<Mailbox>(*group_); });
    } catch (const Error& error) {  // no memory for the outbox: the peer must not wait for us
      group_->break_with(error);
      throw;
    }
    return *mailbox_;
  }

  std::unique_ptr<Group> group_;
  std::once_flag mailbox_once_;
  std::shared_ptr<Mailbox> mailbox_;  // made with the first transfer
};

}  // namespace

std::shared_ptr<Domain> make_domain(const DomainOptions& options) {
  return std::make_shared<Domain>(options, make_socket_connector(options.socket_directory));
}

std::unique_ptr<Communicator> make_communicator(std::shared_ptr<Domain> domain, Store& store,
                                                int rank, int size, const GroupOptions& options) {
  return std::make_unique<ShmCommunicator>(
      Group::join(std::move(domain), store, rank, size, options));
}

}  // namespace fvd::shm
