#include "c10d/backend.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>

#include "c10d/lookup.h"
#include "c10d/store_adapter.h"
#include "c10d/translate_errors.h"

namespace fvd::c10d_ {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kShutdownLimit{2000};

std::string label_of(const FastVideoOptions& options) {
  const bool described = !options.group_desc.empty() && options.group_desc != "undefined";
  return described ? text(options.group_desc, " (", options.group_name, ")") : options.group_name;
}

GroupOptions group_options(const FastVideoOptions& options, const std::string& label, int size) {
  FVD_CHECK(options.timeout > milliseconds{0}, kInvalidArgument,
            "fastvideo: a group needs a timeout above 0, got ", options.timeout.count(), " ms");
  FVD_CHECK(options.global_ranks_in_group.empty() ||
                options.global_ranks_in_group.size() == static_cast<std::size_t>(size),
            kInvalidArgument, "fastvideo: group \"", label, "\" has ", size,
            " ranks but global_ranks_in_group has ", options.global_ranks_in_group.size());
  GroupOptions result;
  result.name = label;
  result.timeout = options.timeout;
  for (const auto rank : options.global_ranks_in_group)
    result.global_ranks.push_back(static_cast<int>(rank));
  return result;
}

}  // namespace

FastVideoBackend::FastVideoBackend(c10::intrusive_ptr<::c10d::Store> store, int rank, int size,
                                   c10::intrusive_ptr<FastVideoOptions> options,
                                   CommunicatorFactory factory, const Host& host)
    : Backend(rank, size),
      options_(std::move(options)),
      label_(label_of(*options_)),
      timeout_(options_->timeout),
      store_(std::move(store)),
      factory_(std::move(factory)) {
  translated([&] {
    FVD_CHECK(size > 0 && rank >= 0 && rank < size, kInvalidArgument, "fastvideo: rank ", rank,
              " is not in a group of ", size, " ranks");
    auto group = group_options(*options_, label_, size);
    group.interrupt = host.interrupt_hook();
    runner_ = std::make_shared<GroupRunner>(
        factory_(at::kCPU, std::make_shared<StoreAdapter>(store_, host), rank, size, group), label_,
        host);
    device_ = std::make_shared<DeviceGroup>(
        runner_, [this](c10::Device device, const DeviceConnection::Interrupt& interrupt) {
          return make_device_communicator(device, interrupt);
        });
  });
  init();
  remember(*this);
}

FastVideoBackend::~FastVideoBackend() {
  forget(*this);
  shutdown();
}

void FastVideoBackend::shutdown() {
  // Null if the constructor threw.
  if (device_) device_->close();
  if (runner_) runner_->close(kShutdownLimit);
}

void FastVideoBackend::note_exchange(const std::string& path) {
  const std::lock_guard lock(path_mutex_);
  if (exchange_path_ != path) exchange_path_ = path;
}

std::string FastVideoBackend::exchange_path() const {
  const std::lock_guard lock(path_mutex_);
  return exchange_path_;
}

void FastVideoBackend::abort() {
  const std::string reason = text("abort() was called on rank ", rank_);
  device_->abort(reason);
  runner_->abort(reason);
}

std::unique_ptr<Communicator> FastVideoBackend::make_device_communicator(
    c10::Device device, const DeviceConnection::Interrupt& interrupt) {
  const auto& host = runner_->host();
  auto group = group_options(*options_, label_, size_);
  group.timeout = timeout_.load();
  group.interrupt = &interrupt;
  const auto keys =
      c10::make_intrusive<::c10d::PrefixStore>(text("device", device_attempts_++, "/"), store_);
  return factory_(device, std::make_shared<StoreAdapter>(keys, host), rank_, size_, group);
}

void FastVideoBackend::eagerConnectSingleDevice(at::Device device) {
  if (!device.is_cuda()) return;
  translated([&] { device_->connect(device); });
}

void FastVideoBackend::setTimeout(milliseconds timeout) {
  TORCH_CHECK_VALUE(timeout > milliseconds{0}, site("setTimeout").prefix(),
                    "the timeout must be above 0, got ", timeout.count(), " ms");
  timeout_ = timeout;
  options_->timeout = timeout;
}

void FastVideoBackend::waitForPendingWorks() {
  const auto timeout = timeout_.load();
  if (runner_->wait_idle(timeout)) return;
  C10_THROW_ERROR(DistBackendError, text(site("waitForPendingWorks").prefix(),
                                         "work is still queued after ", timeout.count(), " ms"));
}

::c10d::ErrorType FastVideoBackend::getError() {
  device_->note_failure();
  switch (runner_->first_failure()) {
    case Kind::kInvalidArgument:
    case Kind::kUnsupported:
      return ::c10d::ErrorType::SUCCESS;
    case Kind::kTimeout:
      return ::c10d::ErrorType::TIMEOUT;
    case Kind::kPeerLost:
      return ::c10d::ErrorType::REMOTE_ERROR;
    case Kind::kMismatch:
    case Kind::kAborted:
    case Kind::kSystem:
    case Kind::kLibrary:
      return ::c10d::ErrorType::COMM_ERROR;
  }
  return ::c10d::ErrorType::COMM_ERROR;
}

void FastVideoBackend::run_in_order(const GroupRunner::Body& body) {
  ++sequence_;
  translated([&] { runner_->run(body, timeout_.load()); });
}

void FastVideoBackend::run_on_device(const char* operation, const CallMemory& memory,
                                     const GroupRunner::Body& body) {
  const DeviceCall call{::c10d::OpType::UNKNOWN, nullptr, operation, timeout_.load(), ++sequence_,
                        /*async=*/false};
  translated([&] { device_->run(call, memory, {}, body); });
}

FastVideoBackend::Request FastVideoBackend::request(const char* operation, ::c10d::OpType type,
                                                    const char* title, milliseconds timeout,
                                                    bool async) const {
  const auto where = site(operation);
  TORCH_CHECK_VALUE(timeout >= ::c10d::kUnsetTimeout, where.prefix(),
                    "the timeout must not be negative, got ", timeout.count(), " ms");
  const bool given = timeout > milliseconds{0};
  return Request(where, type, profiling_title(title), given ? timeout : timeout_.load(), async);
}

int FastVideoBackend::checked_root(const Site& site, int64_t root) const {
  TORCH_CHECK_VALUE(root >= 0 && root < size_, site.prefix(), "the root is rank ", root,
                    " of the group, which has ranks 0 to ", size_ - 1);
  return static_cast<int>(root);
}

const at::Tensor& FastVideoBackend::only(const Site& site, const Tensors& tensors,
                                         const char* what) const {
  TORCH_CHECK_VALUE(tensors.size() == 1, site.prefix(), "expected one ", what, " tensor, got ",
                    tensors.size());
  return tensors.front();
}

WorkPtr FastVideoBackend::submit(const Request& request, Tensors outputs, GroupRunner::Body body) {
  if (!request.memory.device.is_cpu()) [[unlikely]]
    return submit_to_device(request, std::move(outputs), body);
  std::optional<Tensors> recorded;
  if (request.title != nullptr) recorded = outputs;
  auto work = c10::make_intrusive<CollectiveWork>(rank_, request.type, request.site.operation,
                                                  request.title, recorded, ++sequence_,
                                                  std::move(outputs), runner_->host());
  const bool collected = coalescing();
  if (!request.async && !collected) {
    try {
      if (translated([&] { return runner_->try_run(body, request.timeout); })) {
        work->complete(nullptr);
        return work;
      }
    } catch (...) {
      work->complete(std::current_exception());
      throw;
    }
  }
  work->set_queued(runner_);
  translated([&] {
    runner_->enqueue(std::move(body), request.timeout, [work](std::exception_ptr error) {
      work->complete(translated(std::move(error)));
    });
  });
  if (collected) note_coalesced(work);
  return work;
}

WorkPtr FastVideoBackend::submit_to_device(const Request& request, Tensors outputs,
                                           const GroupRunner::Body& body) {
  const bool collected = coalescing();
  DeviceCall call{request.type,    request.title, request.site.operation,
                  request.timeout, ++sequence_,   request.async || collected};
  auto work =
      translated([&] { return device_->run(call, request.memory, std::move(outputs), body); });
  if (collected) note_coalesced(work);
  return work;
}

}  // namespace fvd::c10d_
