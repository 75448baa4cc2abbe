"""Differentiable collectives over any c10d backend, for groups that are not this project's.

Groups of the backend "fastvideo" use the ops instead (`fastvideo_dist.ops`), which can be compiled.
Values and gradients are the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

__all__ = ["DistributedAutograd", "apply", "exact_sum"]


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    """`function.apply`, whose type torch does not give."""
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def exact_sum(op: Any) -> bool:
    """Whether the gradient of an all_reduce with `op` is an all_reduce with `op`."""
    return op is None or op in (ReduceOp.SUM, ReduceOp.AVG)


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, input_: Tensor, op: Any = None) -> Tensor:
        ctx.group, ctx.op = group, ReduceOp.SUM if op is None else op
        output = input_.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(output, op=ctx.op, group=group)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None]:
        if not exact_sum(ctx.op):
            raise NotImplementedError(
                f"all_reduce with {ctx.op} has no gradient here; only SUM and AVG have"
            )
        return None, apply(_AllReduce, ctx.group, grad_output, ctx.op), None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: ProcessGroup, input_: Tensor, world_size: int, dim: int) -> Tensor:
        ctx.group, ctx.world_size, ctx.dim = group, world_size, dim % input_.dim()
        mine = _bytes(input_.detach().movedim(ctx.dim, 0).contiguous())
        output = mine.new_empty(world_size * mine.numel())
        dist.all_gather_into_tensor(output, mine, group=group)
        shape = list(input_.shape)
        size = shape.pop(ctx.dim)
        output = output.view(input_.dtype).view([world_size * size, *shape])
        return output.movedim(0, ctx.dim).contiguous()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None, None]:
        # Every rank used every part: what a part's owner gets is the sum over the ranks.
        total = apply(_AllReduce, ctx.group, grad_output)
        part = total.chunk(ctx.world_size, dim=ctx.dim)[dist.get_rank(ctx.group)]
        return None, part.contiguous(), None, None


class _Slice(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, group: ProcessGroup, input_: Tensor, world_size: int, dim: int, scale_grad: bool
    ) -> Tensor:
        ctx.group, ctx.world_size, ctx.dim = group, world_size, dim % input_.dim()
        ctx.scale_grad = scale_grad
        size = input_.size(ctx.dim)
        if size % world_size:
            raise ValueError(
                f"shard: dimension {ctx.dim} of shape {list(input_.shape)} has size {size}, no "
                f"multiple of the {world_size} ranks; pad it"
            )
        part = input_.chunk(world_size, dim=ctx.dim)[dist.get_rank(group)]
        return part.clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None, None, None]:
        gradient = apply(_AllGather, ctx.group, grad_output, ctx.world_size, ctx.dim)
        if ctx.scale_grad:
            gradient = gradient / ctx.world_size
        return None, gradient, None, None, None


class _AllToAll4D(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        group: ProcessGroup,
        input_: Tensor,
        world_size: int,
        scatter_dim: int,
        gather_dim: int,
    ) -> Tensor:
        _check_exchange(input_, world_size, scatter_dim, gather_dim)
        ctx.group, ctx.world_size = group, world_size
        ctx.scatter_dim, ctx.gather_dim = scatter_dim, gather_dim
        parts = input_.detach().chunk(world_size, dim=scatter_dim)
        sent = torch.cat([_bytes(part.contiguous()) for part in parts])
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        came = received.chunk(world_size)
        shape = parts[0].shape
        return torch.cat([one.view(input_.dtype).view(shape) for one in came], dim=gather_dim)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None, None, None]:
        gradient = apply(
            _AllToAll4D, ctx.group, grad_output, ctx.world_size, ctx.gather_dim, ctx.scatter_dim
        )
        return None, gradient, None, None, None


class DistributedAutograd:
    """The functions by FastVideo's names: `DistributedAutograd.AllReduce.apply(group, x, op)`."""

    AllReduce = _AllReduce
    AllGather = _AllGather
    Slice = _Slice
    AllToAll4D = _AllToAll4D


def _bytes(contiguous: Tensor) -> Tensor:
    """For backends that do not know every dtype."""
    return contiguous.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)


def _check_exchange(x: Tensor, world_size: int, scatter_dim: int, gather_dim: int) -> None:
    if x.dim() != 4 or not {scatter_dim, gather_dim} < {0, 1, 2, 3} or scatter_dim == gather_dim:
        raise ValueError(
            f"all_to_all_4D: shape {list(x.shape)}, scatter_dim {scatter_dim} and gather_dim "
            f"{gather_dim}; there must be 4 dimensions, and two different ones of 0 to 3 named"
        )
    if x.size(scatter_dim) % world_size:
        raise ValueError(
            f"all_to_all_4D: dimension {scatter_dim} of shape {list(x.shape)} has size "
            f"{x.size(scatter_dim)}, no multiple of the {world_size} ranks of the group; pad it"
        )
