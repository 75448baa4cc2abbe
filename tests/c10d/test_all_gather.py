"""all_gather in every form torch.distributed has: list, concatenated, stacked, coalesced."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import reference
from c10d import cases
from harness import run_ranks


def gather_list(mine: Tensor, world_size: int) -> list[Tensor]:
    outputs = [torch.empty_like(mine) for _ in range(world_size)]
    dist.all_gather(outputs, mine)
    return outputs


def gather_tensor(mine: Tensor, world_size: int) -> list[Tensor]:
    """Concatenated along the first dimension."""
    output = torch.empty([world_size * mine.shape[0], *mine.shape[1:]], dtype=mine.dtype)
    dist.all_gather_into_tensor(output, mine)
    return list(output.chunk(world_size)) if mine.numel() else [mine] * world_size


def gather_stacked(mine: Tensor, world_size: int) -> list[Tensor]:
    """With a new first dimension, one entry a rank."""
    output = torch.empty([world_size, *mine.shape], dtype=mine.dtype)
    dist.all_gather_into_tensor(output, mine)
    return list(output.unbind())


def gather_backend(mine: Tensor, world_size: int) -> list[Tensor]:
    """As functional collectives and FSDP call it: the group's own method."""
    output = torch.empty([world_size * mine.numel()], dtype=mine.dtype)
    group = dist.group.WORLD
    assert group is not None
    group._allgather_base(output, mine.reshape(-1)).wait()
    return [part.view(mine.shape) for part in output.view(world_size, -1).unbind()]


FORMS = [gather_list, gather_tensor, gather_stacked, gather_backend]


def check_dtypes(rank: int, world_size: int) -> None:
    for dtype in cases.MOVED:
        inputs = cases.all_inputs(world_size, 1003, dtype)
        for form in FORMS:
            results = form(inputs[rank].clone(), world_size)
            for result, wanted in zip(results, reference.all_gather(inputs), strict=True):
                cases.same_bits(result, wanted, (form.__name__, dtype))


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_dtype(world_size: int) -> None:
    run_ranks(check_dtypes, world_size)


def check_sizes(rank: int, world_size: int, dtype: torch.dtype) -> None:
    for number, count in enumerate(cases.counts(dtype.itemsize)):
        inputs = cases.all_inputs(world_size, count, dtype, seed=count)
        form = FORMS[number % len(FORMS)]
        results = form(inputs[rank].clone(), world_size)
        for result, wanted in zip(results, inputs, strict=True):
            cases.same_bits(result, wanted, (form.__name__, count))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_size(world_size: int, dtype: torch.dtype) -> None:
    run_ranks(check_sizes, world_size, dtype=dtype)


def check_layouts(rank: int, world_size: int) -> None:
    for count in (5, 30_001):
        inputs = cases.all_inputs(world_size, (count, 3), torch.float32)
        for layout in (cases.holed, cases.shifted, lambda x: x.t().contiguous().t()):
            outputs = [layout(torch.zeros(count, 3)) for _ in range(world_size)]
            dist.all_gather(outputs, layout(inputs[rank]))
            for result, wanted in zip(outputs, inputs, strict=True):
                cases.same_bits(result, wanted, (count, result.stride()))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_strided_inputs_and_outputs(world_size: int) -> None:
    run_ranks(check_layouts, world_size)


def check_in_place(rank: int, world_size: int) -> None:
    for count in (1, 1000, 200_000):
        inputs = cases.all_inputs(world_size, count, torch.float32)
        output = torch.zeros(world_size, count)
        output[rank] = inputs[rank]
        dist.all_gather_into_tensor(output.view(-1), output[rank])
        cases.same_bits(output, torch.stack(inputs), f"in place, {count}")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_input_may_be_its_own_part_of_the_output(world_size: int) -> None:
    run_ranks(check_in_place, world_size)


def check_unequal(rank: int, world_size: int) -> None:
    for scale in (1, 50_000):
        shapes = [(r * scale, 3) for r in range(world_size)]
        inputs = [cases.make(r, shapes[r], torch.float32) for r in range(world_size)]
        outputs = [torch.empty(shape) for shape in shapes]
        dist.all_gather(outputs, inputs[rank])
        for result, wanted in zip(outputs, inputs, strict=True):
            cases.same_bits(result, wanted, ("unequal", scale))


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_a_list_of_unequal_parts(world_size: int) -> None:
    run_ranks(check_unequal, world_size)


def check_coalesced(rank: int, world_size: int) -> None:
    inputs = [cases.all_inputs(world_size, n, torch.float32, n) for n in (3, 70_000)]
    group = dist.group.WORLD
    assert group is not None
    outputs = [torch.empty(world_size * n) for n in (3, 70_000)]
    group.allgather_into_tensor_coalesced(outputs, [given[rank] for given in inputs]).wait()
    for result, given in zip(outputs, inputs, strict=True):
        cases.same_bits(result, torch.cat(given), "coalesced")


@pytest.mark.parametrize("world_size", [1, 3])
def test_coalesced(world_size: int) -> None:
    run_ranks(check_coalesced, world_size)


def check_zero_dimensions(rank: int, world_size: int) -> list[float]:
    outputs = [torch.empty(()) for _ in range(world_size)]
    dist.all_gather(outputs, torch.tensor(float(rank)))
    return [float(output) for output in outputs]


def test_zero_dimensional_tensors() -> None:
    assert run_ranks(check_zero_dimensions, 3) == [[0.0, 1.0, 2.0]] * 3
