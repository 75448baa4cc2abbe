"""reduce: all_reduce's bits on the root; nobody else's result is looked at."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import reference
from c10d import cases
from harness import run_ranks


def check(rank: int, world_size: int, count: int, dtype: torch.dtype, op: str, root: int) -> None:
    inputs = cases.all_inputs(world_size, count, dtype, seed=count)
    tensor = inputs[rank].clone()
    dist.reduce(tensor, root, cases.reduce_op(op))
    if rank == root:
        cases.reduced(tensor, reference.all_reduce(inputs, op), (count, dtype, op, root))


def check_dtypes(rank: int, world_size: int) -> None:
    for number, (dtype, op) in enumerate(cases.reductions()):
        check(rank, world_size, 777, dtype, op, number % world_size)


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_dtype_and_op(world_size: int) -> None:
    run_ranks(check_dtypes, world_size)


def check_sizes(rank: int, world_size: int) -> None:
    for root in range(world_size):
        for count in cases.counts(4):
            check(rank, world_size, count, torch.float32, "SUM", root)


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_size_and_root(world_size: int) -> None:
    run_ranks(check_sizes, world_size)


def check_strided(rank: int, world_size: int) -> None:
    inputs = cases.all_inputs(world_size, (20_001, 3), torch.bfloat16)
    for layout in (cases.holed, cases.shifted):
        tensor = layout(inputs[rank])
        dist.reduce(tensor, 0)
        if rank == 0:
            cases.reduced(tensor, reference.all_reduce(inputs), tensor.stride())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_strided_and_unaligned_tensors(world_size: int) -> None:
    run_ranks(check_strided, world_size)
