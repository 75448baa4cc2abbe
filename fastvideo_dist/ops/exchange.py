"""all_to_all_4d, of one tensor or of several at once. The rules are the package's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, overload

import torch
import torch.distributed as dist
from torch import Tensor

import fastvideo_dist.ops.fakes  # noqa: F401  (defines torch.ops.fastvideo_dist)
from fastvideo_dist._compat import extension
from fastvideo_dist.ops.groups import Site, facts, member
from fastvideo_dist.ops.splits import check_dims_4d, split_sizes

__all__ = ["all_to_all_4d", "exchange_path"]

# One size per rank, for all tensors or for each.
Sizes: TypeAlias = Sequence[int] | Sequence[Sequence[int]]


@overload
def all_to_all_4d(
    x: Tensor,
    scatter_dim: int = 2,
    gather_dim: int = 1,
    group: dist.ProcessGroup | None = None,
    scatter_sizes: Sequence[int] | None = None,
    gather_sizes: Sequence[int] | None = None,
) -> Tensor: ...


@overload
def all_to_all_4d(
    x: Sequence[Tensor],
    scatter_dim: int = 2,
    gather_dim: int = 1,
    group: dist.ProcessGroup | None = None,
    scatter_sizes: Sizes | None = None,
    gather_sizes: Sizes | None = None,
) -> list[Tensor]: ...


def all_to_all_4d(
    x: Tensor | Sequence[Tensor],
    scatter_dim: int = 2,
    gather_dim: int = 1,
    group: dist.ProcessGroup | None = None,
    scatter_sizes: Sizes | None = None,
    gather_sizes: Sizes | None = None,
) -> Tensor | list[Tensor]:
    """Exchanges sequence-parallel tensors: scatters one dimension over the ranks, gathers another.

    With W ranks, (2, 1) goes from a slice of the sequence to a slice of the heads, and (1, 2) back:

        [B, S/W, H, D] -> [B, S, H/W, D]        y_r[b, j*S/W + s, h, d] = x_j[b, s, r*H/W + h, d]
        [B, S, H/W, D] -> [B, S/W, H, D]

    Args:
        x: 4 dimensions, any dtype; the same shape on all ranks, but along `gather_dim` if
            `gather_sizes` say so. Or several such tensors of one dtype, q, k and v say, which
            travel together: one call of the transport, no cat. Their shapes may differ.
        scatter_dim: 0 to 3.
        gather_dim: 0 to 3, another one.
        scatter_sizes: how many indices along `scatter_dim` each rank gets, W numbers; None:
            `split_sizes`, so heads need not be a multiple of W.
        gather_sizes: how many indices along `gather_dim` each rank has, W numbers; None: all have
            as many as this one. To be given on the way back what was `scatter_sizes` on the way
            there. For several tensors both may be lists of such lists.

    Gradient: the inverse exchange.

    Returns:
        A tensor for a tensor, a list for several.
    """
    group = member("all_to_all_4d", group)
    size = group.size()
    op: Any = torch.ops.fastvideo_dist
    if (
        isinstance(x, Tensor)
        and scatter_sizes is None
        and gather_sizes is None
        and x.dim() == 4
        and 0 <= scatter_dim < 4
        and x.size(scatter_dim) % size == 0
    ):
        # The usual call, a few microseconds: the op checks the rest itself.
        result: Tensor = op.all_to_all_4d(x, scatter_dim, gather_dim, group.group_name, size)
        return result
    name, size, rank = facts("all_to_all_4d", group)
    site = Site("all_to_all_4d", name, rank)
    tensors = [x] if isinstance(x, Tensor) else list(x)
    if not tensors:
        raise ValueError(f"{site}: there is no tensor in the list")
    for tensor in tensors:
        check_dims_4d(site, tensor, scatter_dim, gather_dim)
    even = all(tensor.shape[scatter_dim] % size == 0 for tensor in tensors)
    if scatter_sizes is None and not even:
        scatter_sizes = [split_sizes(tensor.shape[scatter_dim], size) for tensor in tensors]
    scattered = _flat(site, "scatter_sizes", scatter_sizes, len(tensors))
    gathered = _flat(site, "gather_sizes", gather_sizes, len(tensors))
    results: list[Tensor] = op.all_to_all_4d_list(
        tensors, scatter_dim, gather_dim, scattered, gathered, name, size, rank
    )
    return results[0] if isinstance(x, Tensor) else results


def exchange_path(group: dist.ProcessGroup | None = None) -> str:
    """Which way the last `all_to_all_4d` of CUDA tensors of `group` took on this rank.

    "push": every rank wrote into the results of all. "nccl: ..." and why it was not that: with
    `FASTVIDEO_DIST_PUSH=1`, a rank that cannot, or a capture. Empty: there was none yet.

    Raises:
        ValueError: a group of another backend, or a destroyed one.
    """
    path: str = extension().exchange_path(member("exchange_path", group).group_name)
    return path


def _flat(site: Site, what: str, sizes: Sizes | None, tensors: int) -> list[int] | None:
    """Those of one tensor after those of the other."""
    if sizes is None:
        return None
    nested: list[Any] = list(sizes)
    if not nested or not isinstance(nested[0], (list, tuple)):
        return nested * tensors
    if len(nested) != tensors:
        raise ValueError(f"{site}: {what} are {len(nested)} lists of sizes for {tensors} tensors")
    return [size for one in nested for size in one]
