// Reductions of whole tensors: all_reduce, and reduce, which is also what broadcast's gradient is.
#include <ATen/ops/div.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "ops/differentiable.h"
#include "ops/op_call.h"

namespace fvd::ops {
namespace {

at::Tensor all_reduce(const at::Tensor& x, std::string_view op, std::string_view group_name,
                      std::int64_t group_size) {
  const OpCall call("all_reduce", group_name, group_size);
  const ReduceOp reduction{reduce_kind(call.site(), op)};
  auto y = empty_as(x, x.sizes());
  call.run([in = call.read(x, "x"), out = call.write(y), reduction](Communicator& communicator,
                                                                    const Call& settings) {
    communicator.all_reduce(in.data, out.data, in.count(), in.type, reduction, settings);
  });
  return y;
}

/// Zeros everywhere but on `dst`, so that the op is linear and has a gradient on every rank.
at::Tensor reduce(const at::Tensor& x, std::int64_t dst, std::string_view op,
                  std::string_view group_name, std::int64_t group_size) {
  const OpCall call("reduce", group_name, group_size);
  const ReduceOp reduction{reduce_kind(call.site(), op)};
  const int root = call.checked_root(dst, "dst");
  const bool here = call.rank() == static_cast<std::size_t>(root);
  auto y = here ? empty_as(x, x.sizes()) : at::zeros_like(x, at::MemoryFormat::Contiguous);
  call.run([in = call.read(x, "x"), out = call.write(y), reduction, root, here](
               Communicator& communicator, const Call& settings) {
    communicator.reduce(in.data, here ? out.data : nullptr, in.count(), in.type, reduction, root,
                        settings);
  });
  return y;
}

at::Tensor broadcast(const at::Tensor& x, std::int64_t src, std::string_view group_name,
                     std::int64_t group_size) {
  const OpCall call("broadcast", group_name, group_size);
  const int root = call.checked_root(src, "src");
  auto y = empty_as(x, x.sizes());
  // Elsewhere the values of x do not matter, but what cannot be sent is refused on all ranks.
  const auto in = c10d_::view(call.site(), x, c10d_::Access::kReadStrided, "x");
  if (call.rank() == static_cast<std::size_t>(root)) y.copy_(in.memory);
  call.run([out = call.write(y), root](Communicator& communicator, const Call& settings) {
    communicator.broadcast(out.block(), out.type, root, settings);
  });
  return y;
}

struct AllReduceCall {
  std::string op;
  std::string group;
  std::int64_t size;

  at::Tensor operator()(const at::Tensor& x) const {
    static const auto handle = find_op<decltype(all_reduce)>("fastvideo_dist::all_reduce");
    return handle.call(x, op, group, size);
  }
  void check_linear() const { check_linear_reduction("all_reduce", group, op); }
  at::Tensor gradient(const at::Tensor& dy) const { return (*this)(dy); }
  void save(Saved& saved) const {
    saved["op"] = op;
    saved["group"] = group;
    saved["size"] = size;
  }
  static AllReduceCall load(const Saved& saved) {
    return {saved.at("op").toStringRef(), saved.at("group").toStringRef(),
            saved.at("size").toInt()};
  }
};

/// reduce with `op`, broadcast without: each is the other's gradient.
struct RootedCall {
  std::int64_t root;
  std::string op;
  std::string group;
  std::int64_t size;

  at::Tensor operator()(const at::Tensor& x) const {
    static const auto to_root = find_op<decltype(reduce)>("fastvideo_dist::reduce");
    static const auto from_root = find_op<decltype(broadcast)>("fastvideo_dist::broadcast");
    if (op.empty()) return from_root.call(x, root, group, size);
    return to_root.call(x, root, op, group, size);
  }
  void check_linear() const {
    if (!op.empty()) check_linear_reduction("reduce", group, op);
  }
  at::Tensor gradient(const at::Tensor& dy) const {
    if (op.empty()) return RootedCall{root, "sum", group, size}(dy);
    const auto dx = RootedCall{root, "", group, size}(dy);
    return op == "avg" ? dx.div(size) : dx;
  }
  void save(Saved& saved) const {
    saved["root"] = root;
    saved["op"] = op;
    saved["group"] = group;
    saved["size"] = size;
  }
  static RootedCall load(const Saved& saved) {
    return {saved.at("root").toInt(), saved.at("op").toStringRef(), saved.at("group").toStringRef(),
            saved.at("size").toInt()};
  }
};

at::Tensor all_reduce_autograd(const at::Tensor& x, std::string_view op,
                               std::string_view group_name, std::int64_t group_size) {
  return differentiable(x, AllReduceCall{std::string(op), std::string(group_name), group_size});
}

at::Tensor reduce_autograd(const at::Tensor& x, std::int64_t dst, std::string_view op,
                           std::string_view group_name, std::int64_t group_size) {
  return differentiable(x, RootedCall{dst, std::string(op), std::string(group_name), group_size});
}

at::Tensor broadcast_autograd(const at::Tensor& x, std::int64_t src, std::string_view group_name,
                              std::int64_t group_size) {
  return differentiable(x, RootedCall{src, "", std::string(group_name), group_size});
}

}  // namespace

TORCH_LIBRARY_IMPL(fastvideo_dist, CPU, library) {
  library.impl("all_reduce", all_reduce);
  library.impl("reduce", reduce);
  library.impl("broadcast", broadcast);
}

TORCH_LIBRARY_IMPL(fastvideo_dist, CUDA, library) {
  library.impl("all_reduce", all_reduce);
  library.impl("reduce", reduce);
  library.impl("broadcast", broadcast);
}

TORCH_LIBRARY_IMPL(fastvideo_dist, Autograd, library) {
  library.impl("all_reduce", all_reduce_autograd);
  library.impl("reduce", reduce_autograd);
  library.impl("broadcast", broadcast_autograd);
}

}  // namespace fvd::ops
