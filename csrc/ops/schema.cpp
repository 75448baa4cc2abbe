// Every op of the project, as torch sees it. Kernels and backward passes stand in csrc/ops, what a
// compiler needs to know in fastvideo_dist/ops.
//
// W: ranks of the group. `sizes` of n tensors are n * W numbers, those of one tensor after the
// other; None means equal parts. group_rank stands where the shape of a result depends on it. All
// results are new and contiguous.
#include <torch/library.h>

TORCH_LIBRARY(fastvideo_dist, library) {
  library.set_python_module("fastvideo_dist.ops.fakes");
  const auto def = [&](const char* schema) { library.def(schema, {at::Tag::pt2_compliant_tag}); };

  // [B, S/W, H, D] -> [B, S, H/W, D] for (2, 1) and back for (1, 2), over the W ranks of a group.
  def("all_to_all_4d(Tensor x, int scatter_dim, int gather_dim, str group_name, int group_size)"
      " -> Tensor");

  // The same for several tensors at once, and for parts of any sizes.
  def("all_to_all_4d_list(Tensor[] xs, int scatter_dim, int gather_dim, SymInt[]? scatter_sizes,"
      " SymInt[]? gather_sizes, str group_name, int group_size, int group_rank) -> Tensor[]");

  // `op` is sum, avg, product, min, max, band, bor or bxor.
  def("all_reduce(Tensor x, str op, str group_name, int group_size) -> Tensor");

  // To rank `dst`; zeros elsewhere.
  def("reduce(Tensor x, int dst, str op, str group_name, int group_size) -> Tensor");

  // Of rank `src`; elsewhere the values of x do not matter.
  def("broadcast(Tensor x, int src, str group_name, int group_size) -> Tensor");

  // [.., n_r, ..] -> [.., sum of all n, ..]
  def("all_gather(Tensor x, int dim, SymInt[]? sizes, str group_name, int group_size,"
      " int group_rank) -> Tensor");

  // [.., sum of all n, ..] -> [.., n_r, ..]
  def("reduce_scatter(Tensor x, int dim, str op, SymInt[]? sizes, str group_name, int group_size,"
      " int group_rank) -> Tensor");

  // The same part without a word to the others; the gradient is gathered.
  def("shard(Tensor x, int dim, SymInt[]? sizes, bool scale_grad, str group_name, int group_size,"
      " int group_rank) -> Tensor");
}
