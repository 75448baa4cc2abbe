"""gather and scatter: one rank holds the list, the others hold nothing."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import reference
from c10d import cases
from harness import run_ranks


def check_gather(rank: int, world_size: int, count: int, dtype: torch.dtype, root: int) -> None:
    inputs = cases.all_inputs(world_size, count, dtype, seed=count)
    outputs = [torch.empty_like(inputs[0]) for _ in range(world_size)] if rank == root else None
    dist.gather(inputs[rank].clone(), outputs, dst=root)
    if outputs is not None:
        for result, wanted in zip(outputs, reference.all_gather(inputs), strict=True):
            cases.same_bits(result, wanted, ("gather", dtype, count, root))


def check_scatter(rank: int, world_size: int, count: int, dtype: torch.dtype, root: int) -> None:
    lists = [list(cases.make(r, (world_size, count), dtype).unbind()) for r in range(world_size)]
    output = torch.empty(count, dtype=dtype)
    dist.scatter(output, lists[rank] if rank == root else None, src=root)
    cases.same_bits(output, reference.scatter(lists, root)[rank], ("scatter", dtype, count, root))


def check_dtypes(rank: int, world_size: int) -> None:
    for dtype in cases.MOVED:
        for root in range(world_size):
            check_gather(rank, world_size, 501, dtype, root)
            check_scatter(rank, world_size, 501, dtype, root)


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_dtype_and_root(world_size: int) -> None:
    run_ranks(check_dtypes, world_size)


def check_sizes(rank: int, world_size: int) -> None:
    for number, count in enumerate(cases.counts(4)):
        check_gather(rank, world_size, count, torch.float32, number % world_size)
        check_scatter(rank, world_size, count, torch.float32, number % world_size)


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_size(world_size: int) -> None:
    run_ranks(check_sizes, world_size)


def check_layouts(rank: int, world_size: int) -> None:
    count, root = 30_001, world_size - 1
    inputs = cases.all_inputs(world_size, (count, 3), torch.float32)
    for layout in (cases.holed, cases.shifted, lambda x: x.t().contiguous().t()):
        outputs = [layout(torch.zeros(count, 3)) for _ in range(world_size)]
        dist.gather(layout(inputs[rank]), outputs if rank == root else None, dst=root)
        received = layout(torch.zeros(count, 3))
        dist.scatter(received, outputs if rank == root else None, src=root)
        cases.same_bits(received, inputs[rank], received.stride())


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_scatter_undoes_gather_with_strided_tensors(world_size: int) -> None:
    run_ranks(check_layouts, world_size)
