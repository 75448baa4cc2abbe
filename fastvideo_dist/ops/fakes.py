"""What a compiler has to know of each op: the checks that need no group, the shape of the result,
and that its calls are neither to be left out nor to change places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

from fastvideo_dist._compat import extension, keep_in_order, mend_inductor, mend_partitioner
from fastvideo_dist.ops.groups import Site
from fastvideo_dist.ops.splits import check_dims_4d, check_sizes, wrapped_dim

__all__ = ["COLLECTIVES", "REDUCTIONS"]

extension()  # defines torch.ops.fastvideo_dist

# All but shard, which sends nothing.
COLLECTIVES = (
    "all_gather",
    "all_reduce",
    "all_to_all_4d",
    "all_to_all_4d_list",
    "broadcast",
    "reduce",
    "reduce_scatter",
)
REDUCTIONS = ("sum", "avg", "product", "min", "max", "band", "bor", "bxor")


Shape = Callable[..., Any]


def _fake(name: str) -> Callable[[Shape], Shape]:
    """Registers what a compiler calls instead of the op."""

    def register(function: Shape) -> Shape:
        @wraps(function)
        def traced(*args: Any, **kwargs: Any) -> Any:
            mend_inductor(_overloads())
            mend_partitioner(_overloads())
            return function(*args, **kwargs)

        torch.library.register_fake(f"fastvideo_dist::{name}", traced)
        return function

    return register


@cache
def _overloads() -> list[Any]:
    return [getattr(torch.ops.fastvideo_dist, name).default for name in COLLECTIVES]


def _check_op(site: Site, op: str) -> None:
    if op not in REDUCTIONS:
        raise ValueError(f'{site}: op is "{op}"; it must be one of {", ".join(REDUCTIONS)}')


def _check_rank(site: Site, rank: int, group_size: int, what: str) -> None:
    if not 0 <= rank < group_size:
        raise ValueError(f"{site}: {what} is {rank}; the group has ranks 0 to {group_size - 1}")


def _part(
    site: Site, x: Tensor, dim: int, sizes: Sequence[int] | None, ranks: int, rank: int
) -> Tensor:
    """What rank `rank` has of `x` cut along `dim`."""
    shape = list(x.shape)
    if sizes is None:
        if shape[dim] % ranks != 0:
            raise ValueError(
                f"{site}: size {shape[dim]} is no multiple of the {ranks} ranks; give sizes or "
                "pad it"
            )
        shape[dim] //= ranks
    else:
        check_sizes(site, sizes, shape[dim], ranks, "sizes")
        shape[dim] = sizes[rank]
    return x.new_empty(shape)


@_fake("all_reduce")
def _all_reduce(x: Tensor, op: str, group_name: str, group_size: int) -> Tensor:
    site = Site("all_reduce", group_name, None)
    _check_op(site, op)
    return x.new_empty(x.shape)


@_fake("reduce")
def _reduce(x: Tensor, dst: int, op: str, group_name: str, group_size: int) -> Tensor:
    site = Site("reduce", group_name, None)
    _check_op(site, op)
    _check_rank(site, dst, group_size, "dst")
    return x.new_empty(x.shape)


@_fake("broadcast")
def _broadcast(x: Tensor, src: int, group_name: str, group_size: int) -> Tensor:
    site = Site("broadcast", group_name, None)
    _check_rank(site, src, group_size, "src")
    return x.new_empty(x.shape)


@_fake("all_gather")
def _all_gather(
    x: Tensor,
    dim: int,
    sizes: Sequence[int] | None,
    group_name: str,
    group_size: int,
    group_rank: int,
) -> Tensor:
    site = Site("all_gather", group_name, group_rank)
    dim = wrapped_dim(site, x, dim)
    shape = list(x.shape)
    if sizes is None:
        shape[dim] *= group_size
        return x.new_empty(shape)
    check_sizes(site, sizes, sum(sizes), group_size, "sizes")
    if sizes[group_rank] != shape[dim]:
        raise ValueError(
            f"{site}: sizes {list(sizes)} say {sizes[group_rank]} for rank {group_rank} but x "
            f"has shape {shape}, {shape[dim]} along dim {dim}"
        )
    shape[dim] = sum(sizes)
    return x.new_empty(shape)


@_fake("reduce_scatter")
def _reduce_scatter(
    x: Tensor,
    dim: int,
    op: str,
    sizes: Sequence[int] | None,
    group_name: str,
    group_size: int,
    group_rank: int,
) -> Tensor:
    site = Site("reduce_scatter", group_name, group_rank)
    _check_op(site, op)
    dim = wrapped_dim(site, x, dim)
    return _part(site, x, dim, sizes, group_size, group_rank)


@_fake("shard")
def _shard(
    x: Tensor,
    dim: int,
    sizes: Sequence[int] | None,
    scale_grad: bool,
    group_name: str,
    group_size: int,
    group_rank: int,
) -> Tensor:
    site = Site("shard", group_name, group_rank)
    _check_rank(site, group_rank, group_size, "group_rank")
    return _part(site, x, wrapped_dim(site, x, dim), sizes, group_size, group_rank)


@_fake("all_to_all_4d")
def _all_to_all_4d(
    x: Tensor, scatter_dim: int, gather_dim: int, group_name: str, group_size: int
) -> Tensor:
    site = Site("all_to_all_4d", group_name, None)
    check_dims_4d(site, x, scatter_dim, gather_dim)
    if group_size <= 0:
        raise ValueError(f"{site}: group_size must be above 0, got {group_size}")
    if x.shape[scatter_dim] % group_size != 0:
        raise ValueError(
            f"{site}: dimension {scatter_dim} of x has size {x.shape[scatter_dim]}, no "
            f"multiple of the {group_size} ranks; give sizes or pad it"
        )
    shape = list(x.shape)
    shape[scatter_dim] //= group_size
    shape[gather_dim] *= group_size
    return x.new_empty(shape)


@_fake("all_to_all_4d_list")
def _all_to_all_4d_list(
    xs: Sequence[Tensor],
    scatter_dim: int,
    gather_dim: int,
    scatter_sizes: Sequence[int] | None,
    gather_sizes: Sequence[int] | None,
    group_name: str,
    group_size: int,
    group_rank: int,
) -> list[Tensor]:
    site = Site("all_to_all_4d", group_name, group_rank)
    for sizes, what in ((scatter_sizes, "scatter_sizes"), (gather_sizes, "gather_sizes")):
        if sizes is not None and len(sizes) != len(xs) * group_size:
            raise ValueError(
                f"{site}: {what} are {list(sizes)}, {len(sizes)} numbers for {len(xs)} "
                f"tensors and {group_size} ranks"
            )
    results = []
    for i, x in enumerate(xs):
        check_dims_4d(site, x, scatter_dim, gather_dim)
        mine = slice(i * group_size, (i + 1) * group_size)
        scattered = None if scatter_sizes is None else scatter_sizes[mine]
        part = _part(site, x, scatter_dim, scattered, group_size, group_rank)
        shape = list(part.shape)
        if gather_sizes is None:
            shape[gather_dim] *= group_size
        else:
            shape[gather_dim] = sum(gather_sizes[mine])
        results.append(x.new_empty(shape))
    return results


for _name in COLLECTIVES:
    keep_in_order(f"fastvideo_dist::{_name}")
