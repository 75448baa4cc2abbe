// The exchange of sequence parallelism: one dimension is scattered over the ranks, another
// gathered.
//
// Rank r gets  y[.., j*n + i, ..] = x_j[.., i, ..]  along the gathered dimension (n: its size in
// x), of that r-th part of each x_j along the scattered dimension. Both layouts are read and
// written where they lie: no transpose before or after.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/hash.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <vector>

#include "c10d/backend.h"
#include "c10d/lookup.h"
#include "c10d/tensor_view.h"
#include "comm/block_layout.h"

namespace fvd::ops {
namespace {

void check_arguments(const at::Tensor& x, int64_t scatter_dim, int64_t gather_dim,
                     int64_t group_size) {
  TORCH_CHECK_VALUE(x.dim() == 4, "all_to_all_4d: x must have 4 dimensions, got shape ", x.sizes());
  TORCH_CHECK_VALUE(scatter_dim >= 0 && scatter_dim < 4 && gather_dim >= 0 && gather_dim < 4,
                    "all_to_all_4d: scatter_dim and gather_dim must be 0 to 3, got ", scatter_dim,
                    " and ", gather_dim);
  TORCH_CHECK_VALUE(scatter_dim != gather_dim,
                    "all_to_all_4d: scatter_dim and gather_dim must differ, both are ", gather_dim);
  TORCH_CHECK_VALUE(group_size > 0, "all_to_all_4d: group_size must be above 0, got ", group_size);
  TORCH_CHECK_VALUE(x.size(scatter_dim) % group_size == 0, "all_to_all_4d: dimension ", scatter_dim,
                    " of x has size ", x.size(scatter_dim), ", no multiple of the ", group_size,
                    " ranks of the group; pad it");
}

at::Tensor all_to_all_4d(const at::Tensor& x, int64_t scatter_dim, int64_t gather_dim,
                         std::string_view group_name, int64_t group_size) {
  check_arguments(x, scatter_dim, gather_dim, group_size);
  const std::string group(group_name);
  const auto backend = c10d_::find_backend(group);
  TORCH_CHECK_VALUE(backend->getSize() == group_size, "all_to_all_4d: group \"", group, "\" has ",
                    backend->getSize(), " ranks but group_size is ", group_size);

  auto sizes = x.sizes().vec();
  sizes[scatter_dim] /= group_size;
  sizes[gather_dim] *= group_size;
  auto y = at::empty(sizes, x.options().memory_format(at::MemoryFormat::Contiguous));

  const c10d_::Site site{"all_to_all_4d", group, backend->getRank()};
  const auto in = c10d_::view(site, x, c10d_::Access::kRead, "x");
  const auto out = c10d_::view(site, y, c10d_::Access::kWrite, "y");
  const auto ranks = static_cast<std::size_t>(group_size);
  const auto element = static_cast<std::size_t>(x.element_size());
  const auto scattered = BlockLayout::split(x.sizes(), scatter_dim, element, ranks);
  const auto gathered = BlockLayout::split(sizes, gather_dim, element, ranks);

  // Bytes of two ranks that scatter different dimensions would fit each other all the same.
  std::size_t layout = c10::get_hash(scatter_dim, gather_dim);
  for (const int64_t size : sizes)
    layout = c10::hash_combine(layout, static_cast<std::size_t>(size));

  backend->run_in_order([=](Communicator& communicator, Call call) {
    call.layout = layout | 1;
    std::vector<ConstBlock> sent(ranks);
    std::vector<Block> received(ranks);
    for (std::size_t peer = 0; peer < ranks; ++peer) {
      sent[peer] = scattered.block(static_cast<const void*>(in.data), peer);
      received[peer] = gathered.block(static_cast<void*>(out.data), peer);
    }
    communicator.all_to_all(sent, received, in.type, true, call);
  });
  return y;
}

/// Through the dispatcher, as a caller in Python does it.
at::Tensor dispatch(const at::Tensor& x, int64_t scatter_dim, int64_t gather_dim,
                    std::string_view group_name, int64_t group_size) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastvideo_dist::all_to_all_4d", "")
                             .typed<decltype(all_to_all_4d)>();
  return op.call(x, scatter_dim, gather_dim, group_name, group_size);
}

/// The backward pass is the inverse exchange, which can be differentiated again.
class Exchange : public torch::autograd::Function<Exchange> {
 public:
  // All that backward uses is in saved_data, so compiled autograd may trace it.
  static constexpr bool is_traceable = true;

  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            int64_t scatter_dim, int64_t gather_dim, std::string_view group_name,
                            int64_t group_size) {
    context->saved_data["scatter_dim"] = scatter_dim;
    context->saved_data["gather_dim"] = gather_dim;
    context->saved_data["group_name"] = std::string(group_name);
    context->saved_data["group_size"] = group_size;
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatch(x, scatter_dim, gather_dim, group_name, group_size);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto& saved = context->saved_data;
    auto gradient =
        dispatch(gradients[0], saved.at("gather_dim").toInt(), saved.at("scatter_dim").toInt(),
                 saved.at("group_name").toStringView(), saved.at("group_size").toInt());
    return {std::move(gradient), {}, {}, {}, {}};
  }
};

at::Tensor all_to_all_4d_autograd(const at::Tensor& x, int64_t scatter_dim, int64_t gather_dim,
                                  std::string_view group_name, int64_t group_size) {
  if (at::GradMode::is_enabled() && x.requires_grad()) {
    return Exchange::apply(x, scatter_dim, gather_dim, group_name, group_size);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch(x, scatter_dim, gather_dim, group_name, group_size);
}

}  // namespace

TORCH_LIBRARY_IMPL(fastvideo_dist, CPU, library) { library.impl("all_to_all_4d", all_to_all_4d); }

TORCH_LIBRARY_IMPL(fastvideo_dist, Autograd, library) {
  library.impl("all_to_all_4d", all_to_all_4d_autograd);
}

}  // namespace fvd::ops
