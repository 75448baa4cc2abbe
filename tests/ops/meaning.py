"""What each op means: single-process torch on the list of all ranks' inputs, differentiable.

`OPS` names every op with a way to call it on one rank and the same in one process, so that values,
gradients and compilers are asked about all of them alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastvideo_dist import ops


def parts(x: Tensor, sizes: Sequence[int], dim: int) -> list[Tensor]:
    return list(x.split(list(sizes), dim=dim))


def exchanged(
    inputs: Sequence[Tensor],
    scatter_dim: int,
    gather_dim: int,
    scatter_sizes: Sequence[int] | None = None,
) -> list[Tensor]:
    """all_to_all_4d; what is gathered has the sizes it has."""
    world = len(inputs)
    sizes = scatter_sizes or ops.split_sizes(inputs[0].shape[scatter_dim], world)
    blocks = [parts(x, sizes, scatter_dim) for x in inputs]
    return [torch.cat([mine[rank] for mine in blocks], dim=gather_dim) for rank in range(world)]


def total(inputs: Sequence[Tensor], op: str = "sum") -> Tensor:
    result = torch.stack(list(inputs)).sum(0)
    return result / len(inputs) if op == "avg" else result


def gathered(inputs: Sequence[Tensor], dim: int) -> list[Tensor]:
    return [torch.cat(list(inputs), dim=dim) for _ in inputs]


def reduce_scattered(inputs: Sequence[Tensor], dim: int, op: str = "sum") -> list[Tensor]:
    result = total(inputs, op)
    return parts(result, ops.split_sizes(result.shape[dim], len(inputs)), dim)


def reduced_to(inputs: Sequence[Tensor], dst: int, op: str = "sum") -> list[Tensor]:
    result = total(inputs, op)
    return [result if r == dst else torch.zeros_like(result) for r in range(len(inputs))]


def sharded(inputs: Sequence[Tensor], dim: int) -> list[Tensor]:
    """Of equal inputs, so their average: each rank's gradient is its share in that of all parts."""
    return reduce_scattered(inputs, dim, "avg")


@dataclass(frozen=True)
class Op:
    """`call` on one rank; `meaning` of all ranks' inputs; `shape` of the input of a rank.

    `alike`: whether the op is for inputs that are the same on all ranks.
    """

    call: Callable[[Tensor, int, int], Tensor]
    meaning: Callable[[list[Tensor]], list[Tensor]]
    shape: Callable[[int, int], Sequence[int]]
    alike: bool = False

    def inputs(self, world: int, make: Callable[[int, Sequence[int]], Tensor]) -> list[Tensor]:
        return [make(0 if self.alike else r, self.shape(r, world)) for r in range(world)]


def _same(*shape: int) -> Callable[[int, int], Sequence[int]]:
    return lambda rank, world: shape


OPS = {
    "all_reduce sum": Op(
        lambda x, rank, world: ops.all_reduce(x),
        lambda xs: [total(xs) for _ in xs],
        _same(3, 4),
    ),
    "all_reduce avg": Op(
        lambda x, rank, world: ops.all_reduce(x, "avg"),
        lambda xs: [total(xs, "avg") for _ in xs],
        _same(3, 4),
    ),
    "reduce sum": Op(
        lambda x, rank, world: ops.reduce(x, world - 1),
        lambda xs: reduced_to(xs, len(xs) - 1),
        _same(5),
    ),
    "reduce avg": Op(
        lambda x, rank, world: ops.reduce(x, 0, "avg"),
        lambda xs: reduced_to(xs, 0, "avg"),
        _same(5),
    ),
    "broadcast": Op(
        lambda x, rank, world: ops.broadcast(x, world - 1),
        lambda xs: [xs[-1].clone() for _ in xs],
        _same(2, 3),
    ),
    "all_gather": Op(
        lambda x, rank, world: ops.all_gather(x, -1),
        lambda xs: gathered(xs, -1),
        _same(2, 3, 4),
    ),
    "all_gather of unequal parts": Op(
        lambda x, rank, world: ops.all_gather(x, 1, sizes=ops.split_sizes(7, world)),
        lambda xs: gathered(xs, 1),
        lambda rank, world: (2, ops.split_sizes(7, world)[rank], 3),
    ),
    "reduce_scatter sum": Op(
        lambda x, rank, world: ops.reduce_scatter(x, 1),
        lambda xs: reduce_scattered(xs, 1),
        lambda rank, world: (2, 3 * world, 4),
    ),
    "reduce_scatter avg into unequal parts": Op(
        lambda x, rank, world: ops.reduce_scatter(x, 1, "avg"),
        lambda xs: reduce_scattered(xs, 1, "avg"),
        _same(2, 7, 3),
    ),
    "shard": Op(
        lambda x, rank, world: ops.shard(x, 1),
        lambda xs: sharded(xs, 1),
        lambda rank, world: (2, 3 * world, 4),
        alike=True,
    ),
    "shard into unequal parts": Op(
        lambda x, rank, world: ops.shard(x, -1),
        lambda xs: sharded(xs, -1),
        _same(3, 1, 7),
        alike=True,
    ),
    "all_to_all_4d": Op(
        lambda x, rank, world: ops.all_to_all_4d(x),
        lambda xs: exchanged(xs, 2, 1),
        lambda rank, world: (2, 3, 2 * world, 4),
    ),
    "all_to_all_4d of unequal parts": Op(
        lambda x, rank, world: ops.all_to_all_4d(x, gather_sizes=ops.split_sizes(10, world)),
        lambda xs: exchanged(xs, 2, 1),
        lambda rank, world: (2, ops.split_sizes(10, world)[rank], 5, 3),
    ),
}
