"""Collectives as torch ops: traceable by torch.compile and torch.export, differentiable.

Kernels, schemas and backward passes stand in csrc/ops. Here stand the public functions and what a
compiler needs to know: the checks and the shape of the result.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fastvideo_dist._compat import extension

__all__ = ["all_to_all_4d"]

extension()  # defines torch.ops.fastvideo_dist


def all_to_all_4d(
    x: Tensor,
    scatter_dim: int = 2,
    gather_dim: int = 1,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Exchanges a sequence-parallel tensor: scatters one dimension over the ranks, gathers another.

    With W ranks, (2, 1) goes from a slice of the sequence to a slice of the heads, and (1, 2) back:

        [B, S/W, H, D] -> [B, S, H/W, D]        y_r[b, j*S/W + s, h, d] = x_j[b, s, r*H/W + h, d]
        [B, S, H/W, D] -> [B, S/W, H, D]

    Collective: every rank calls it, in the same order as the group's other collectives. It returns
    when the exchange is done. The backward pass is the inverse exchange, a collective too.

    Args:
        x: 4 dimensions, on the CPU, any dtype. The same shape and dtype on all ranks. A copy is
            made first if it is not contiguous.
        scatter_dim: 0 to 3; the size of `x` there must be a multiple of W.
        gather_dim: 0 to 3, another one.
        group: of the backend "fastvideo"; None means the default group.

    Returns:
        A new contiguous tensor, also with one rank.

    Raises:
        ValueError: a wrong dimension or size, a group of another backend, or a destroyed one.
        torch.distributed.DistBackendError: the exchange failed; docs/errors.md tells what then.
    """
    if group is None:
        group = dist.group.WORLD
        if group is None:
            raise ValueError(
                "all_to_all_4d: there is no default group; call init_process_group first, or give "
                "a group"
            )
    result: Tensor = torch.ops.fastvideo_dist.all_to_all_4d(
        x, scatter_dim, gather_dim, group.group_name, group.size()
    )
    return result


@torch.library.register_fake("fastvideo_dist::all_to_all_4d")
def _all_to_all_4d_shape(
    x: Tensor, scatter_dim: int, gather_dim: int, group_name: str, group_size: int
) -> Tensor:
    """The checks of the kernel that need no group, and the shape of its result."""
    if x.dim() != 4:
        raise ValueError(f"all_to_all_4d: x must have 4 dimensions, got shape {list(x.shape)}")
    if not (0 <= scatter_dim < 4 and 0 <= gather_dim < 4):
        raise ValueError(
            "all_to_all_4d: scatter_dim and gather_dim must be 0 to 3, got "
            f"{scatter_dim} and {gather_dim}"
        )
    if scatter_dim == gather_dim:
        raise ValueError(
            f"all_to_all_4d: scatter_dim and gather_dim must differ, both are {gather_dim}"
        )
    if group_size <= 0:
        raise ValueError(f"all_to_all_4d: group_size must be above 0, got {group_size}")
    if x.shape[scatter_dim] % group_size != 0:
        raise ValueError(
            f"all_to_all_4d: dimension {scatter_dim} of x has size {x.shape[scatter_dim]}, no "
            f"multiple of the {group_size} ranks of the group; pad it"
        )
    shape = list(x.shape)
    shape[scatter_dim] //= group_size
    shape[gather_dim] *= group_size
    return x.new_empty(shape)
