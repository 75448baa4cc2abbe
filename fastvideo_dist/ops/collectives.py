"""all_reduce, reduce, broadcast, all_gather, reduce_scatter, shard. The rules are the package's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

import fastvideo_dist.ops.fakes  # noqa: F401  (defines torch.ops.fastvideo_dist)
from fastvideo_dist.ops.groups import facts
from fastvideo_dist.ops.splits import split_sizes, wrapped_dim

__all__ = ["all_gather", "all_reduce", "broadcast", "reduce", "reduce_scatter", "shard"]


def all_reduce(x: Tensor, op: str = "sum", group: dist.ProcessGroup | None = None) -> Tensor:
    """Combines the ranks' tensors element by element: y = x_0 + x_1 + ..., the same on all ranks.

    Args:
        x: the same number of elements and dtype on all ranks.
        op: "sum", "avg", "product", "min", "max", "band", "bor" or "bxor".

    Gradient: all_reduce by the same op for "sum" and "avg"; NotImplementedError for others.
    """
    name, size, _ = facts("all_reduce", group)
    result: Tensor = torch.ops.fastvideo_dist.all_reduce(x, op, name, size)
    return result


def reduce(
    x: Tensor, dst: int = 0, op: str = "sum", group: dist.ProcessGroup | None = None
) -> Tensor:
    """As all_reduce on rank `dst`; zeros on the others.

    Gradient: broadcast from `dst` for "sum" (and divided for "avg"); NotImplementedError for
    others.
    """
    name, size, _ = facts("reduce", group)
    result: Tensor = torch.ops.fastvideo_dist.reduce(x, dst, op, name, size)
    return result


def broadcast(x: Tensor, src: int = 0, group: dist.ProcessGroup | None = None) -> Tensor:
    """The values of rank `src`, on all ranks. Elsewhere `x` gives shape and dtype only.

    Gradient: the sum of all ranks' for `x` of `src`, zeros elsewhere.
    """
    name, size, _ = facts("broadcast", group)
    result: Tensor = torch.ops.fastvideo_dist.broadcast(x, src, name, size)
    return result


def all_gather(
    x: Tensor,
    dim: int = 0,
    group: dist.ProcessGroup | None = None,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """Joins the ranks' tensors along `dim`, written where they belong: no cat.

        [.., n_r, ..] -> [.., n_0 + n_1 + ..., ..]

    Args:
        x: the same shape on all ranks but for `dim`.
        dim: may count from the end.
        sizes: n of each rank; None: all have as many as this one.

    Gradient: reduce_scatter by "sum".
    """
    group_facts = facts("all_gather", group)
    name, size, rank = group_facts
    dim = wrapped_dim(group_facts.site("all_gather"), x, dim)
    result: Tensor = torch.ops.fastvideo_dist.all_gather(x, dim, sizes, name, size, rank)
    return result


def reduce_scatter(
    x: Tensor,
    dim: int = 0,
    op: str = "sum",
    group: dist.ProcessGroup | None = None,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """Combines the ranks' tensors and leaves rank r the r-th part along `dim`.

        [.., n_0 + n_1 + ..., ..] -> [.., n_r, ..]

    Args:
        x: the same shape and dtype on all ranks.
        dim: may count from the end.
        op: as for all_reduce.
        sizes: n of each rank; None: `split_sizes`.

    Gradient: all_gather for "sum" (and divided for "avg"); NotImplementedError for others.
    """
    group_facts = facts("reduce_scatter", group)
    name, size, rank = group_facts
    dim = wrapped_dim(group_facts.site("reduce_scatter"), x, dim)
    if sizes is None and x.shape[dim] % size != 0:
        sizes = split_sizes(x.shape[dim], size)
    result: Tensor = torch.ops.fastvideo_dist.reduce_scatter(x, dim, op, sizes, name, size, rank)
    return result


def shard(
    x: Tensor,
    dim: int,
    group: dist.ProcessGroup | None = None,
    scale_grad: bool = True,
    sizes: Sequence[int] | None = None,
) -> Tensor:
    """Rank r's part of a tensor that all ranks have. Nothing is sent.

        [.., n_0 + n_1 + ..., ..] -> [.., n_r, ..]

    Args:
        x: the same on all ranks.
        dim: may count from the end.
        scale_grad: whether the gradient is divided by the number of ranks.
        sizes: n of each rank; None: `split_sizes`.

    Gradient: all_gather: all ranks get that of the whole `x`. It is a collective.
    """
    group_facts = facts("shard", group)
    name, size, rank = group_facts
    dim = wrapped_dim(group_facts.site("shard"), x, dim)
    if sizes is None and x.shape[dim] % size != 0:
        sizes = split_sizes(x.shape[dim], size)
    result: Tensor = torch.ops.fastvideo_dist.shard(x, dim, sizes, scale_grad, name, size, rank)
    return result
