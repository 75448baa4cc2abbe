"""The operations: their inputs, the call that is timed, and what must come out.

Sizes follow nccl-tests: `bytes` is one rank's tensor, and for all_gather and reduce_scatter the
large one of the two. They are rounded up to one element per rank.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from fastvideo_dist.ops import all_to_all_4d

# The exchange of Wan2.1-T2V-1.3B: 12 heads of 128, in bf16.
HEADS, HEAD_DIM = 12, 128
# q, k and v of a model with more and smaller heads.
QKV_HEADS, QKV_DIM = 24, 64

PERMUTES = "+permutes"  # all_to_all_4d done by permute + all_to_all_single + permute


@dataclass(frozen=True)
class Case:
    """`call` is timed; what it returns must equal `expected` when `inputs` are fresh.

    Several tensors of one shape are compared with one that has them side by side in front.
    """

    bytes: int
    call: Callable[[], Tensor | list[Tensor]]
    expected: Tensor
    inputs: Tensor

    def verify(self) -> None:
        """Run once and compare; raises RuntimeError. Zeroes the inputs: sums must stay finite."""
        result = self.call()
        if isinstance(result, list):
            result = torch.stack(result)
        if not torch.equal(result, self.expected):
            raise RuntimeError(
                f"wrong result: {result.flatten()[:8]} != {self.expected.flatten()[:8]}"
            )
        self.inputs.zero_()


def pattern(rank: int, count: int) -> Tensor:
    """Small whole numbers, different on each rank: their sums are exact in float32."""
    return ((torch.arange(count) * 7 + rank * 13) % 61).float()


def all_reduce(group: dist.ProcessGroup, size: int) -> Case:
    rank, world = group.rank(), group.size()
    x = pattern(rank, max(1, size // 4))

    def call() -> Tensor:
        dist.all_reduce(x, group=group)
        return x

    expected = torch.stack([pattern(r, x.numel()) for r in range(world)]).sum(0)
    return Case(x.nbytes, call, expected, x)


def broadcast(group: dist.ProcessGroup, size: int) -> Case:
    x = pattern(group.rank(), max(1, size // 4))

    def call() -> Tensor:
        dist.broadcast(x, 0, group=group)
        return x

    return Case(x.nbytes, call, pattern(0, x.numel()), x)


def all_gather_into_tensor(group: dist.ProcessGroup, size: int) -> Case:
    rank, world = group.rank(), group.size()
    x = pattern(rank, _per_rank(size, world))
    out = torch.empty(world * x.numel())

    def call() -> Tensor:
        dist.all_gather_into_tensor(out, x, group=group)
        return out

    expected = torch.cat([pattern(r, x.numel()) for r in range(world)])
    return Case(out.nbytes, call, expected, x)


def reduce_scatter_tensor(group: dist.ProcessGroup, size: int) -> Case:
    rank, world = group.rank(), group.size()
    x = pattern(rank, world * _per_rank(size, world))
    out = torch.empty(x.numel() // world)

    def call() -> Tensor:
        dist.reduce_scatter_tensor(out, x, group=group)
        return out

    total = torch.stack([pattern(r, x.numel()) for r in range(world)]).sum(0)
    return Case(x.nbytes, call, total.chunk(world)[rank], x)


def all_to_all_single(group: dist.ProcessGroup, size: int) -> Case:
    rank, world = group.rank(), group.size()
    x = pattern(rank, world * _per_rank(size, world))
    out = torch.empty_like(x)

    def call() -> Tensor:
        dist.all_to_all_single(out, x, group=group)
        return out

    expected = torch.cat([pattern(r, x.numel()).chunk(world)[rank] for r in range(world)])
    return Case(x.nbytes, call, expected, x)


def isend_recv(group: dist.ProcessGroup, size: int) -> Case:
    """Around a ring: every rank sends to the next one and receives from the one before."""
    rank, world = group.rank(), group.size()
    x = pattern(rank, max(1, size // 4))
    out = torch.empty_like(x)

    def call() -> Tensor:
        sent = dist.isend(x, group=group, group_dst=(rank + 1) % world)
        dist.recv(out, group=group, group_src=(rank - 1) % world)
        if sent is not None:
            sent.wait()
        return out

    return Case(x.nbytes, call, pattern((rank - 1) % world, x.numel()), x)


def barrier(group: dist.ProcessGroup, size: int) -> Case:
    nothing = torch.empty(0)

    def call() -> Tensor:
        dist.barrier(group=group)
        return nothing

    return Case(0, call, nothing, nothing)


def exchange(group: dist.ProcessGroup, size: int) -> Case:
    """all_to_all_4d: [1, S/W, H, D] -> [1, S, H/W, D] in one op."""
    x, expected = _exchange_tensors(group, size)
    return Case(x.nbytes, lambda: all_to_all_4d(x, 2, 1, group), expected, x)


def exchange_by_permutes(group: dist.ProcessGroup, size: int) -> Case:
    """The same without the op: permute, all_to_all_single, permute."""
    x, expected = _exchange_tensors(group, size)
    return Case(x.nbytes, lambda: _permuted(x, group), expected, x)


def exchange_back(group: dist.ProcessGroup, size: int) -> Case:
    """all_to_all_4d: [1, S, H/W, D] -> [1, S/W, H, D] in one op."""
    expected, x = _exchange_tensors(group, size)
    return Case(x.nbytes, lambda: all_to_all_4d(x, 1, 2, group), expected, x)


def exchange_back_by_permutes(group: dist.ProcessGroup, size: int) -> Case:
    """The same without the op."""
    expected, x = _exchange_tensors(group, size)
    return Case(x.nbytes, lambda: _permuted_back(x, group), expected, x)


def exchange_qkv(group: dist.ProcessGroup, size: int) -> Case:
    """all_to_all_4d of q, k and v at once: `size` is that of the three together."""
    qkv, expected = _qkv_tensors(group, size)
    return Case(qkv.nbytes, lambda: all_to_all_4d(list(qkv), 2, 1, group), expected, qkv)


def exchange_qkv_by_permutes(group: dist.ProcessGroup, size: int) -> Case:
    """The same without the op, one after the other."""
    qkv, expected = _qkv_tensors(group, size)
    return Case(qkv.nbytes, lambda: [_permuted(x, group) for x in qkv], expected, qkv)


def exchange_qkv_joined_by_permutes(group: dist.ProcessGroup, size: int) -> Case:
    """The same without the op, as FastVideo does it: joined to one tensor, which is exchanged."""
    qkv, expected = _qkv_tensors(group, size)

    def call() -> list[Tensor]:
        return list(_permuted(torch.cat(list(qkv)), group).chunk(3))

    return Case(qkv.nbytes, call, expected, qkv)


def _permuted(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    world = group.size()
    batch, length, heads, dim = x.shape
    blocks = x.reshape(batch, length, world, heads // world, dim).permute(2, 0, 1, 3, 4)
    blocks = blocks.contiguous()
    received = torch.empty_like(blocks)
    dist.all_to_all_single(received, blocks, group=group)
    return received.permute(1, 0, 2, 3, 4).reshape(batch, world * length, heads // world, dim)


def _permuted_back(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """By the dimensions that FastVideo puts in front: heads, positions, batch."""
    world = group.size()
    batch, length, heads, dim = x.shape
    blocks = x.reshape(batch, world, length // world, heads, dim).permute(1, 3, 2, 0, 4)
    blocks = blocks.contiguous()
    received = torch.empty_like(blocks)
    dist.all_to_all_single(received, blocks, group=group)
    received = received.reshape(world * heads, length // world, batch, dim)
    return received.transpose(0, 2).contiguous()


def _exchange_tensors(group: dist.ProcessGroup, size: int) -> tuple[Tensor, Tensor]:
    length = max(1, size // (HEADS * HEAD_DIM * 2))
    return _scattered(group, (1, length, HEADS, HEAD_DIM))


def _qkv_tensors(group: dist.ProcessGroup, size: int) -> tuple[Tensor, Tensor]:
    """[3, 1, S/W, H, D] and [3, 1, S, H/W, D]."""
    length = max(1, size // (3 * QKV_HEADS * QKV_DIM * 2))
    return _scattered(group, (3, 1, length, QKV_HEADS, QKV_DIM))


def _scattered(group: dist.ProcessGroup, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """This rank's input of a shape that ends with a slice of the sequence, heads and their
    dimension, and the result."""
    rank, world, heads = group.rank(), group.size(), shape[-2]
    if heads % world:
        raise ValueError(f"all_to_all_4d: {heads} heads do not divide over {world} ranks")
    inputs = [pattern(r, math.prod(shape)).bfloat16().reshape(shape) for r in range(world)]
    mine = slice(rank * heads // world, (rank + 1) * heads // world)
    return inputs[rank], torch.cat([x[..., mine, :] for x in inputs], dim=-3)


def _per_rank(size: int, world: int) -> int:
    return max(1, size // (4 * world))


Maker = Callable[[dist.ProcessGroup, int], Case]

OPS: dict[str, Maker] = {
    "all_reduce": all_reduce,
    "all_gather_into_tensor": all_gather_into_tensor,
    "reduce_scatter_tensor": reduce_scatter_tensor,
    "all_to_all_single": all_to_all_single,
    "broadcast": broadcast,
    "isend_recv": isend_recv,
    "barrier": barrier,
    "all_to_all_4d": exchange,
    "all_to_all_4d_back": exchange_back,
    "all_to_all_4d_qkv": exchange_qkv,
    "all_to_all_4d_qkv_joined": exchange_qkv,
}

# What goes over shared memory only, and what does the same over any backend.
BY_PERMUTES: dict[str, Maker] = {
    "all_to_all_4d": exchange_by_permutes,
    "all_to_all_4d_back": exchange_back_by_permutes,
    "all_to_all_4d_qkv": exchange_qkv_by_permutes,
    "all_to_all_4d_qkv_joined": exchange_qkv_joined_by_permutes,
}
