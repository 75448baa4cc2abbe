// Every op of the project, as torch sees it. Kernels and backward passes stand in one file per op;
// what a compiler needs to know stands in fastvideo_dist/ops.py.
#include <torch/library.h>

TORCH_LIBRARY(fastvideo_dist, library) {
  library.set_python_module("fastvideo_dist.ops");

  // [B, S/W, H, D] -> [B, S, H/W, D] for (2, 1) and back for (1, 2), over the W ranks of a group.
  library.def(
      "all_to_all_4d(Tensor x, int scatter_dim, int gather_dim, str group_name, int group_size)"
      " -> Tensor",
      {at::Tag::pt2_compliant_tag});
}
