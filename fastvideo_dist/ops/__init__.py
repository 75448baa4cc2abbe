"""Collectives as torch ops: traceable by torch.compile and torch.export, differentiable.

Rules for all of them:

- They return new contiguous tensors and leave their arguments as they are. Arguments may have any
  strides. What only moves data takes every dtype; reductions take what the backend reduces.
- `group` is of the backend "fastvideo", None means the default group. Ranks in arguments are ranks
  of the group.
- Collective: every rank of the group calls the same op, in the same order as the group's other
  collectives; torch.compile keeps that order and leaves out no call, also if its result is not
  used. An op returns when it is done.
- The backward pass of a collective is a collective: the tensor asks for a gradient on all ranks or
  on none. Gradients are those of the sum of all ranks' losses. Forward mode: the same of tangents,
  which are exchanged by a call of their own.
- In a checkpoint within a compiled function the results of collectives are kept, not asked for a
  second time: all ranks compile such a function, or none.
- Where a size is cut into parts that need not be equal, the default is `split_sizes`. Where parts
  are joined, they are taken to be equal unless their sizes are given.

Raises, all of them:
    ValueError: a wrong argument, a group of another backend, or a destroyed one.
    TypeError, NotImplementedError: a tensor that cannot be sent or reduced.
    torch.distributed.DistBackendError: it failed between the ranks; docs/errors.md tells what then.

Schemas, kernels and backward passes stand in csrc/ops. Here stand the public functions and what a
compiler needs to know: the checks and the shape of the result.
"""

from fastvideo_dist.ops.collectives import (
    all_gather,
    all_reduce,
    broadcast,
    reduce,
    reduce_scatter,
    shard,
)
from fastvideo_dist.ops.exchange import all_to_all_4d, exchange_path
from fastvideo_dist.ops.splits import split_sizes

__all__ = [
    "all_gather",
    "all_reduce",
    "all_to_all_4d",
    "broadcast",
    "exchange_path",
    "reduce",
    "reduce_scatter",
    "shard",
    "split_sizes",
]
