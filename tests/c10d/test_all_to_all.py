"""all_to_all: even and uneven, one tensor and lists."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

import reference
from c10d import cases
from harness import run_ranks


def check_even(rank: int, world_size: int) -> None:
    for dtype in cases.MOVED:
        inputs = cases.all_inputs(world_size, (world_size * 3, 67), dtype)
        output = torch.empty_like(inputs[rank])
        dist.all_to_all_single(output, inputs[rank])
        cases.same_bits(output, reference.all_to_all_single(inputs)[rank], dtype)


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_single_of_every_dtype(world_size: int) -> None:
    run_ranks(check_even, world_size)


def check_sizes(rank: int, world_size: int) -> None:
    for count in cases.counts(1):
        inputs = cases.all_inputs(world_size, world_size * count, torch.uint8, seed=count)
        output = torch.empty_like(inputs[rank])
        dist.all_to_all_single(output, inputs[rank])
        cases.same_bits(output, reference.all_to_all_single(inputs)[rank], count)


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_single_of_every_size(world_size: int) -> None:
    run_ranks(check_sizes, world_size)


def split_table(world_size: int, scale: int) -> list[list[int]]:
    """Rows rank i sends to rank j: different for every pair, some of them none."""
    return [[((i * 3 + j * 5) % 7) * scale for j in range(world_size)] for i in range(world_size)]


def check_uneven(rank: int, world_size: int) -> None:
    for scale in (0, 1, 40, 3001, 40_000):
        splits = split_table(world_size, scale)
        inputs = [cases.make(r, (sum(splits[r]), 3), torch.int16) for r in range(world_size)]
        received = [splits[sender][rank] for sender in range(world_size)]
        output = torch.empty(sum(received), 3, dtype=torch.int16)
        dist.all_to_all_single(output, inputs[rank], received, splits[rank])
        cases.same_bits(output, reference.all_to_all_single(inputs, splits)[rank], scale)


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_single_with_uneven_splits(world_size: int) -> None:
    run_ranks(check_uneven, world_size)


def check_in_place(rank: int, world_size: int) -> None:
    for count in (1, 5000, 300_000):
        inputs = cases.all_inputs(world_size, world_size * count, torch.float32)
        tensor = inputs[rank].clone()
        dist.all_to_all_single(tensor, tensor)
        wanted = reference.all_to_all_single(inputs)[rank]
        cases.same_bits(tensor, wanted, count)
        storage = torch.zeros(world_size * count + 1)
        storage[:-1] = inputs[rank]
        dist.all_to_all_single(storage[1:], storage[:-1])
        cases.same_bits(storage[1:], wanted, (count, "shifted by one element"))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_single_onto_memory_of_its_input(world_size: int) -> None:
    run_ranks(check_in_place, world_size)


def check_one_sided(rank: int, world_size: int) -> None:
    """Everything to rank 0; then only rank 1 sends."""
    for rows_of in (lambda i, j: 5000 * (j == 0), lambda i, j: 70_000 * (i == 1)):
        splits = [[rows_of(i, j) for j in range(world_size)] for i in range(world_size)]
        inputs = [cases.make(r, sum(splits[r]), torch.float32) for r in range(world_size)]
        received = [splits[sender][rank] for sender in range(world_size)]
        output = torch.empty(sum(received))
        dist.all_to_all_single(output, inputs[rank], received, splits[rank])
        cases.same_bits(output, reference.all_to_all_single(inputs, splits)[rank], splits)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_single_with_most_splits_empty(world_size: int) -> None:
    run_ranks(check_one_sided, world_size)


def check_list(rank: int, world_size: int) -> None:
    for scale in (0, 1, 3001):
        splits = split_table(world_size, scale)
        lists = [
            [cases.make(i * world_size + j, n, torch.float32) for j, n in enumerate(splits[i])]
            for i in range(world_size)
        ]
        outputs = [torch.empty(splits[sender][rank]) for sender in range(world_size)]
        dist.all_to_all(outputs, lists[rank])
        for result, wanted in zip(outputs, reference.all_to_all(lists)[rank], strict=True):
            cases.same_bits(result, wanted, scale)


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_lists_of_different_lengths(world_size: int) -> None:
    run_ranks(check_list, world_size)


def check_layouts(rank: int, world_size: int) -> None:
    for count in (4, 20_001):
        shape = (world_size, count, 3)
        inputs = cases.all_inputs(world_size, shape, torch.float32)
        wanted = reference.all_to_all([list(each.unbind()) for each in inputs])[rank]
        for layout in (cases.holed, cases.shifted, lambda x: x.t().contiguous().t()):
            outputs = [layout(torch.zeros(count, 3)) for _ in range(world_size)]
            dist.all_to_all(outputs, [layout(part) for part in inputs[rank].unbind()])
            for result, want in zip(outputs, wanted, strict=True):
                cases.same_bits(result, want, (count, result.stride()))
        single = cases.holed(torch.zeros(shape))
        dist.all_to_all_single(single, cases.holed(inputs[rank]))
        cases.same_bits(single, torch.stack(wanted), (count, "single"))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_strided_inputs_and_outputs(world_size: int) -> None:
    run_ranks(check_layouts, world_size)
