"""broadcast: the root's bits on every rank."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import reference
from c10d import cases
from harness import run_ranks


def check_dtypes(rank: int, world_size: int) -> None:
    for dtype in cases.MOVED:
        for root in range(world_size):
            inputs = cases.all_inputs(world_size, 1003, dtype)
            tensor = inputs[rank].clone()
            dist.broadcast(tensor, root)
            cases.same_bits(tensor, reference.broadcast(inputs, root), (dtype, root))


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_dtype_from_every_root(world_size: int) -> None:
    run_ranks(check_dtypes, world_size)


def check_sizes(rank: int, world_size: int, dtype: torch.dtype) -> None:
    for number, count in enumerate(cases.counts(dtype.itemsize)):
        root = number % world_size
        inputs = cases.all_inputs(world_size, count, dtype)
        tensor = inputs[rank].clone()
        dist.broadcast(tensor, root)
        cases.same_bits(tensor, inputs[root], (count, root))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64], ids=str)
@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_size(world_size: int, dtype: torch.dtype) -> None:
    run_ranks(check_sizes, world_size, dtype=dtype)


def check_layouts(rank: int, world_size: int) -> None:
    for count in (7, 65539):
        inputs = cases.all_inputs(world_size, (count, 2), torch.int16)
        for layout in (cases.holed, cases.shifted, lambda x: x.t().contiguous().t()):
            tensor = layout(inputs[rank])
            dist.broadcast(tensor, world_size - 1)
            cases.same_bits(tensor, inputs[-1], (count, tensor.stride()))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_strided_and_unaligned_tensors(world_size: int) -> None:
    run_ranks(check_layouts, world_size)


def check_root_runs_ahead(rank: int, world_size: int) -> None:
    """The root waits for nobody: many broadcasts in a row may not overtake a slow reader."""
    for count in (1, 5000, 100_000):
        for number in range(50):
            tensor = torch.full((count,), float(number if rank == 0 else -1))
            dist.broadcast(tensor, 0)
            assert (tensor == number).all(), f"{count} elements, broadcast {number}"


@pytest.mark.parametrize("world_size", [2, 4])
def test_many_in_a_row(world_size: int) -> None:
    run_ranks(check_root_runs_ahead, world_size)
