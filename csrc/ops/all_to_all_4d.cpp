// The exchange of sequence parallelism: one dimension is scattered over the ranks, another
// gathered. See exchange.h.
#include <torch/library.h>

#include "ops/differentiable.h"
#include "ops/exchange.h"
#include "ops/op_call.h"

namespace fvd::ops {
namespace {

at::Tensor all_to_all_4d(const at::Tensor& x, std::int64_t scatter_dim, std::int64_t gather_dim,
                         std::string_view group_name, std::int64_t group_size) {
  const OpCall call("all_to_all_4d", group_name, group_size);
  check_dims(call.site(), x, scatter_dim, gather_dim);
  TORCH_CHECK_VALUE(x.size(scatter_dim) % group_size == 0, call.site().prefix(), "dimension ",
                    scatter_dim, " of x has size ", x.size(scatter_dim), ", no multiple of the ",
                    group_size, " ranks; give sizes or pad it");
  if (x.is_cpu() && x.is_contiguous()) return exchange_evenly(call, x, scatter_dim, gather_dim);
  const Splits splits{std::vector(call.ranks(), x.size(scatter_dim) / group_size),
                      std::vector(call.ranks(), x.size(gather_dim))};
  return exchange(call, x, static_cast<std::size_t>(scatter_dim),
                  static_cast<std::size_t>(gather_dim), {splits})[0];
}

/// The backward pass is the inverse exchange, which can be differentiated again.
struct Exchange {
  std::int64_t scatter_dim;
  std::int64_t gather_dim;
  std::string group;
  std::int64_t size;

  at::Tensor operator()(const at::Tensor& x) const {
    static const auto op = find_op<decltype(all_to_all_4d)>("fastvideo_dist::all_to_all_4d");
    return op.call(x, scatter_dim, gather_dim, group, size);
  }
  at::Tensor gradient(const at::Tensor& dy) const {
    return Exchange{gather_dim, scatter_dim, group, size}(dy);
  }
  void save(Saved& saved) const {
    saved["scatter_dim"] = scatter_dim;
    saved["gather_dim"] = gather_dim;
    saved["group"] = group;
    saved["size"] = size;
  }
  static Exchange load(const Saved& saved) {
    return {saved.at("scatter_dim").toInt(), saved.at("gather_dim").toInt(),
            saved.at("group").toStringRef(), saved.at("size").toInt()};
  }
};

at::Tensor all_to_all_4d_autograd(const at::Tensor& x, std::int64_t scatter_dim,
                                  std::int64_t gather_dim, std::string_view group_name,
                                  std::int64_t group_size) {
  return differentiable(x, Exchange{scatter_dim, gather_dim, std::string(group_name), group_size});
}

}  // namespace

TORCH_LIBRARY_IMPL(fastvideo_dist, CPU, library) { library.impl("all_to_all_4d", all_to_all_4d); }
TORCH_LIBRARY_IMPL(fastvideo_dist, CUDA, library) { library.impl("all_to_all_4d", all_to_all_4d); }

TORCH_LIBRARY_IMPL(fastvideo_dist, Autograd, library) {
  library.impl("all_to_all_4d", all_to_all_4d_autograd);
}

}  // namespace fvd::ops
