"""Inputs, sizes and comparisons the collectives' tests share."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import harness

WORLD_SIZES = [1, 2, 3, 4, 5]

INTEGERS = [
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
COMPLEX = [torch.complex64, torch.complex128]
# Moved, never reduced.
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
MOVED = [torch.bool, *INTEGERS, *FLOATS, *COMPLEX, *FLOAT8]

BITWISE = ["BAND", "BOR", "BXOR"]
ARITHMETIC = ["SUM", "AVG", "PRODUCT", "MIN", "MAX"]


def reductions() -> list[tuple[torch.dtype, str]]:
    """Every pair that torch.distributed defines."""
    pairs = [(torch.bool, op) for op in ["SUM", "PRODUCT", "MIN", "MAX", *BITWISE]]
    pairs += [(dtype, op) for dtype in INTEGERS for op in ARITHMETIC + BITWISE]
    pairs += [(dtype, op) for dtype in FLOATS for op in ARITHMETIC]
    pairs += [(dtype, op) for dtype in COMPLEX for op in ["SUM", "AVG"]]
    return pairs


# Where the transport changes its way (option defaults: one-shot up to 32 KiB, staging 2 MiB),
# one element to each side, and odd numbers in between.
_EDGES = [32 << 10, 64 << 10, 1 << 20, 2 << 20]
SMALL_COUNTS = [0, 1, 3, 7, 1000]


def counts(element_bytes: int = 4) -> list[int]:
    """Element counts from 0 to a few MB, with each edge and its neighbours."""
    edges = [edge // element_bytes + step for edge in _EDGES for step in (-1, 0, 1)]
    return [*SMALL_COUNTS, *edges, 65536 + 3, (5 << 20) // element_bytes + 1]


def make(rank: int, shape: int | Sequence[int], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Rank `rank`'s input: the same on whatever process asks for it."""
    shape = [shape] if isinstance(shape, int) else list(shape)
    values = _values(dtype)
    start = (rank * 7919 + seed * 104_729) % len(values)
    count = math.prod(shape)
    turns = (start + count) // len(values) + 1
    return values.repeat(turns)[start : start + count].reshape(shape).clone()


@functools.cache
def _values(dtype: torch.dtype) -> Tensor:
    """What inputs are cut from. Drawing them anew costs more than the collectives do; a prime
    length keeps a block that lands in the wrong place from looking right."""
    source = torch.Generator().manual_seed(1)
    length = 500_009
    if dtype in FLOAT8:  # all bit patterns, NaN among them: they are only moved
        bits = torch.randint(0, 256, [length], generator=source, dtype=torch.uint8)
        return bits.view(dtype)
    if dtype == torch.bool:
        return torch.randint(0, 2, [length], generator=source).to(torch.bool)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn([length], generator=source, dtype=_drawn_as(dtype)).to(dtype)
    # Small enough that the sum of five fits into every integer type.
    low = -24 if dtype.is_signed else 0
    return torch.randint(low, 25, [length], generator=source).to(dtype)


def _drawn_as(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def all_inputs(
    world_size: int, shape: int | Sequence[int], dtype: torch.dtype, seed: int = 0
) -> list[Tensor]:
    return [make(rank, shape, dtype, seed) for rank in range(world_size)]


def bytes_of(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def digest(tensors: Iterable[Tensor]) -> str:
    """A hash of the bits, to compare ranks with each other and runs with runs."""
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(bytes_of(tensor).numpy())
    return sha.hexdigest()


def same_bits(actual: Tensor, wanted: Tensor, what: object) -> None:
    """Dtype, shape and every bit; NaN of any payload equals NaN."""
    assert actual.dtype == wanted.dtype, f"{what}: dtype {actual.dtype}, wanted {wanted.dtype}"
    assert actual.shape == wanted.shape, f"{what}: shape {actual.shape}, wanted {wanted.shape}"
    if torch.equal(bytes_of(actual), bytes_of(wanted)):
        return
    size = actual.element_size()
    differ = (bytes_of(actual) != bytes_of(wanted)).view(-1, size).any(1)
    if actual.dtype.is_floating_point and actual.dtype not in FLOAT8:
        differ &= ~(actual.isnan() & wanted.isnan()).reshape(-1)
    if differ.any():
        _report(actual, wanted, differ, what)


def close(actual: Tensor, wanted: Tensor, what: object) -> None:
    """For products of reals and complex numbers, whose rounding no promise fixes."""
    try:
        torch.testing.assert_close(actual, wanted, equal_nan=True)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def reduced(actual: Tensor, wanted: Tensor, what: object) -> None:
    """A reduction's result: to the bit. Gloo promises no order, so there it may be close."""
    if harness.BACKEND == "gloo" and wanted.dtype.is_floating_point:
        close(actual, wanted, what)
    else:
        same_bits(actual, wanted, what)


def _report(actual: Tensor, wanted: Tensor, differ: Tensor, what: object) -> None:
    index = int(differ.nonzero()[0])
    got, want = (_printable(tensor).reshape(-1)[index] for tensor in (actual, wanted))
    raise AssertionError(
        f"{what}: {int(differ.sum())} of {actual.numel()} elements differ, the first at {index}: "
        f"{got} instead of {want}"
    )


def _printable(tensor: Tensor) -> Tensor:
    return bytes_of(tensor) if tensor.dtype in FLOAT8 else tensor.contiguous()


def holed(tensor: Tensor) -> Tensor:
    """The same values with a stride of two in the last dimension: no dense copy of them."""
    wide = torch.zeros([*tensor.shape, 2], dtype=tensor.dtype)
    wide[..., 0] = tensor
    return wide[..., 0]


def shifted(tensor: Tensor) -> Tensor:
    """The same values one element into a larger storage: never aligned to a vector."""
    storage = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    storage[1:] = tensor.reshape(-1)
    return storage[1:].view(tensor.shape)


def reduce_op(op: str, factor: float = 1.0) -> Any:
    if op == "PREMUL_SUM":
        return dist._make_nccl_premul_sum(factor)
    return getattr(dist.ReduceOp, op)
