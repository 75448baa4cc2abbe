"""reduce_scatter in every form: list, concatenated, stacked, coalesced."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import reference
from c10d import cases
from harness import run_ranks


def scatter_list(parts: list[Tensor], op: str) -> Tensor:
    output = torch.empty_like(parts[0])
    dist.reduce_scatter(output, parts, cases.reduce_op(op))
    return output


def scatter_tensor(parts: list[Tensor], op: str) -> Tensor:
    output = torch.empty_like(parts[0])
    dist.reduce_scatter_tensor(output, torch.cat(parts), cases.reduce_op(op))
    return output


def scatter_stacked(parts: list[Tensor], op: str) -> Tensor:
    output = torch.empty_like(parts[0])
    dist.reduce_scatter_tensor(output, torch.stack(parts), cases.reduce_op(op))
    return output


FORMS = [scatter_list, scatter_tensor, scatter_stacked]


def all_parts(world_size: int, count: int, dtype: torch.dtype, seed: int = 0) -> list[list[Tensor]]:
    """`parts[i][r]` is what rank i contributes to the result of rank r."""
    return [
        list(cases.make(rank, (world_size, count), dtype, seed).unbind())
        for rank in range(world_size)
    ]


def check_dtypes(rank: int, world_size: int) -> None:
    for number, (dtype, op) in enumerate(cases.reductions()):
        parts = all_parts(world_size, 333, dtype)
        form = FORMS[number % len(FORMS)]
        wanted = reference.reduce_scatter(parts, op)[rank]
        cases.reduced(form(parts[rank], op), wanted, (form.__name__, dtype, op))


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_dtype_and_op(world_size: int) -> None:
    run_ranks(check_dtypes, world_size)


def check_sizes(rank: int, world_size: int, dtype: torch.dtype) -> str:
    results = []
    for number, count in enumerate(cases.counts(dtype.itemsize)):
        parts = all_parts(world_size, count, dtype, seed=count)
        form = FORMS[number % len(FORMS)]
        result = form(parts[rank], "SUM")
        wanted = reference.all_reduce([given[rank] for given in parts])
        cases.reduced(result, wanted, (form.__name__, count))
        results.append(result)
    return cases.digest(results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_size_gives_the_same_bits_each_time(world_size: int, dtype: torch.dtype) -> None:
    first = run_ranks(check_sizes, world_size, dtype=dtype)
    assert run_ranks(check_sizes, world_size, dtype=dtype) == first


def check_forms_agree(rank: int, world_size: int) -> None:
    parts = all_parts(world_size, 5003, torch.float16)[rank]
    results = [form(parts, "AVG") for form in FORMS]
    for form, result in zip(FORMS, results, strict=True):
        cases.same_bits(result, results[0], form.__name__)


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_forms_give_the_same_bits(world_size: int) -> None:
    run_ranks(check_forms_agree, world_size)


def check_layouts(rank: int, world_size: int) -> None:
    for count in (5, 30_001):
        shape = (world_size, count, 3)
        given = [cases.make(r, shape, torch.float32) for r in range(world_size)]
        wanted = reference.all_reduce([each[rank] for each in given])
        for layout in (cases.holed, cases.shifted, lambda x: x.t().contiguous().t()):
            output = layout(torch.zeros(count, 3))
            dist.reduce_scatter(output, [layout(part) for part in given[rank].unbind()])
            cases.reduced(output, wanted, (count, output.stride()))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_strided_inputs_and_outputs(world_size: int) -> None:
    run_ranks(check_layouts, world_size)


def check_in_place(rank: int, world_size: int) -> None:
    for count in (1, 1000, 200_000):
        parts = all_parts(world_size, count, torch.float32)
        wanted = reference.all_reduce([given[rank] for given in parts])
        joined = torch.cat(parts[rank])
        output = joined.view(world_size, count)[rank]
        dist.reduce_scatter_tensor(output, joined)
        cases.reduced(output, wanted, f"in place, {count}")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_output_may_be_its_own_part_of_the_input(world_size: int) -> None:
    run_ranks(check_in_place, world_size)


def check_unequal(rank: int, world_size: int) -> None:
    for scale in (1, 50_000):
        parts = [
            [cases.make(i * 7 + r, r * scale, torch.float32) for r in range(world_size)]
            for i in range(world_size)
        ]
        output = torch.empty(rank * scale)
        dist.reduce_scatter(output, parts[rank])
        cases.reduced(output, reference.reduce_scatter(parts)[rank], ("unequal", scale))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_list_of_unequal_parts(world_size: int) -> None:
    run_ranks(check_unequal, world_size)


def check_coalesced(rank: int, world_size: int) -> None:
    parts = [all_parts(world_size, count, torch.float32, count) for count in (3, 70_000)]
    outputs = [torch.empty(count) for count in (3, 70_000)]
    group = dist.group.WORLD
    assert group is not None
    group.reduce_scatter_tensor_coalesced(outputs, [torch.cat(p[rank]) for p in parts]).wait()
    for result, given in zip(outputs, parts, strict=True):
        wanted = reference.all_reduce([each[rank] for each in given])
        cases.reduced(result, wanted, "coalesced")


@pytest.mark.parametrize("world_size", [1, 3])
def test_coalesced(world_size: int) -> None:
    run_ranks(check_coalesced, world_size)
