"""The Ulysses exchange in two ways: as one op, and as everybody has to write it without the op."""

import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from fastvideo_dist.communication_op import sequence_model_parallel_all_to_all_4D
from fastvideo_dist.parallel_state import GroupCoordinator, get_world_group

Exchange = Callable[[Tensor], Tensor]


def to_heads(x: Tensor) -> Tensor:
    """[1, S/W, H, D] -> [1, S, H/W, D]: my slice of the sequence -> all of it for my heads."""
    return sequence_model_parallel_all_to_all_4D(x, scatter_dim=2, gather_dim=1)


def to_sequence(x: Tensor) -> Tensor:
    """[1, S, H/W, D] -> [1, S/W, H, D]: the inverse."""
    return sequence_model_parallel_all_to_all_4D(x, scatter_dim=1, gather_dim=2)


def permuted(group: dist.ProcessGroup) -> tuple[Exchange, Exchange]:
    """The same two over `group`, by permute + all_to_all_single + permute."""
    world = group.size()

    def heads(x: Tensor) -> Tensor:
        batch, length, count, dim = x.shape
        blocks = x.reshape(batch, length, world, count // world, dim).permute(2, 0, 1, 3, 4)
        return _swap(blocks, group).permute(1, 0, 2, 3, 4).reshape(batch, -1, count // world, dim)

    def sequence(x: Tensor) -> Tensor:
        batch, length, count, dim = x.shape
        blocks = x.reshape(batch, world, length // world, count, dim).permute(1, 0, 2, 3, 4)
        return _swap(blocks, group).permute(1, 2, 0, 3, 4).reshape(batch, length // world, -1, dim)

    return heads, sequence


def _swap(blocks: Tensor, group: dist.ProcessGroup) -> Tensor:
    blocks = blocks.contiguous()
    received = torch.empty_like(blocks)
    dist.all_to_all_single(received, blocks, group=group)
    return received


def compare(
    x: Tensor, group: GroupCoordinator, gloo: dist.ProcessGroup, rounds: int = 15
) -> tuple[float, float]:
    """Median seconds of there-and-back on `x` [1, S/W, H, D]: (fastvideo's op, permutes on gloo).

    `group` and `gloo` are the same ranks; all groups of the world do it at the same time.

    The two take turns within one loop, so that a busy moment of the machine meets both. A round
    counts as long as its slowest rank took.
    """
    ways = ((to_heads, to_sequence), permuted(gloo))
    times = torch.zeros(rounds + 2, len(ways), dtype=torch.float64)
    for index in range(times.shape[0]):
        for way, (there, back) in enumerate(ways):
            get_world_group().barrier()
            start = time.perf_counter()
            result = back(there(x))
            times[index, way] = time.perf_counter() - start
            if not torch.equal(result, x):
                raise RuntimeError("the exchange there and back did not return its input")
    times = group.all_reduce(times, dist.ReduceOp.MAX)
    fast, slow = (statistics.median(column.tolist()) for column in times[2:].T)  # 2 warm-up rounds
    return fast, slow
