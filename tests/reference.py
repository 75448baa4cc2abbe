"""What each collective means: plain single-process torch on the list of all ranks' inputs.

Nothing here knows a process group. Reductions follow the project's promise exactly: contributions
combined in the order of the ranks, in float32 for float16 and bfloat16, one rounding at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

# Torch has little arithmetic for these; NumPy computes them with the same wrap-around.
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_HALF = (torch.float16, torch.bfloat16)


def _combine(op: str, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    if dtype == torch.bool:  # as NCCL: any for SUM and MAX, all for PRODUCT and MIN
        return {
            "SUM": torch.logical_or,
            "MAX": torch.logical_or,
            "BOR": torch.logical_or,
            "PRODUCT": torch.logical_and,
            "MIN": torch.logical_and,
            "BAND": torch.logical_and,
            "BXOR": torch.logical_xor,
        }[op]
    return {
        "SUM": torch.add,
        "AVG": torch.add,
        "PREMUL_SUM": torch.add,
        "PRODUCT": torch.mul,
        "MIN": torch.minimum,  # both propagate NaN
        "MAX": torch.maximum,
        "BAND": torch.bitwise_and,
        "BOR": torch.bitwise_or,
        "BXOR": torch.bitwise_xor,
    }[op]


def _combine_unsigned(inputs: Sequence[Tensor], op: str) -> Tensor:
    arrays = [tensor.numpy() for tensor in inputs]
    step = {
        "SUM": np.add,
        "AVG": np.add,
        "PRODUCT": np.multiply,
        "MIN": np.minimum,
        "MAX": np.maximum,
        "BAND": np.bitwise_and,
        "BOR": np.bitwise_or,
        "BXOR": np.bitwise_xor,
    }[op]
    total = arrays[0]
    for array in arrays[1:]:
        total = step(total, array)
    if op == "AVG":
        total = total // total.dtype.type(len(arrays))
    return torch.from_numpy(np.ascontiguousarray(total))


def all_reduce(inputs: Sequence[Tensor], op: str = "SUM", factor: float = 1.0) -> Tensor:
    """The tensor every rank holds afterwards. `factor` is PREMUL_SUM's."""
    dtype = inputs[0].dtype
    if dtype in _UNSIGNED:
        return _combine_unsigned(inputs, op)
    wide = torch.float32 if dtype in _HALF else dtype
    values = [tensor.to(wide) for tensor in inputs]
    if op == "PREMUL_SUM":
        values = [value * factor for value in values]
    combine = _combine(op, dtype)
    total = values[0]
    for value in values[1:]:
        total = combine(total, value)
    if op == "AVG" and dtype.is_complex:  # each part for itself, not by complex division
        total = torch.view_as_complex(torch.view_as_real(total) / len(inputs))
    elif op == "AVG":
        rounding = None if dtype.is_floating_point else "trunc"
        total = torch.div(total, len(inputs), rounding_mode=rounding)
    return total.to(dtype).clone()


def broadcast(inputs: Sequence[Tensor], root: int) -> Tensor:
    return inputs[root].clone()


def all_gather(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The list every rank holds afterwards; gather's root holds the same."""
    return [tensor.clone() for tensor in inputs]


def scatter(lists: Sequence[Sequence[Tensor]], root: int) -> list[Tensor]:
    """What each rank receives of the root's list."""
    return [tensor.clone() for tensor in lists[root]]


def reduce_scatter(lists: Sequence[Sequence[Tensor]], op: str = "SUM") -> list[Tensor]:
    """What each rank holds: `lists[i][r]` is what rank i gives to the result of rank r."""
    return [all_reduce([given[rank] for given in lists], op) for rank in range(len(lists))]


def all_to_all(lists: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """`result[r][i]` is `lists[i][r]`."""
    return [[given[rank].clone() for given in lists] for rank in range(len(lists))]


def all_to_all_single(
    inputs: Sequence[Tensor], splits: Sequence[Sequence[int]] | None = None
) -> list[Tensor]:
    """`splits[i][r]`: rows of rank i's input that go to rank r; None divides evenly."""
    world_size = len(inputs)
    if splits is None:
        splits = [[len(tensor) // world_size] * world_size for tensor in inputs]
    lists = [tensor.split(list(sizes)) for tensor, sizes in zip(inputs, splits, strict=True)]
    return [torch.cat(received) for received in all_to_all(lists)]


def all_to_all_4d(inputs: Sequence[Tensor], scatter_dim: int, gather_dim: int) -> list[Tensor]:
    """Each rank's input split along one dimension, the received blocks joined along the other.

    Differentiable: the gradient of a function of all results is the single-process answer.
    """
    world_size = len(inputs)
    blocks = [tensor.chunk(world_size, dim=scatter_dim) for tensor in inputs]
    return [
        torch.cat([blocks[sender][rank] for sender in range(world_size)], dim=gather_dim)
        for rank in range(world_size)
    ]
