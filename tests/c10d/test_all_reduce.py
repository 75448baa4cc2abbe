"""all_reduce against single-process torch, to the bit."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import reference
from c10d import cases
from harness import run_ranks


def all_reduce(tensor: Tensor, op: str = "SUM", factor: float = 1.0) -> Tensor:
    dist.all_reduce(tensor, cases.reduce_op(op, factor))
    return tensor


def check_dtypes(rank: int, world_size: int) -> str:
    results = []
    for dtype, op in cases.reductions():
        inputs = cases.all_inputs(world_size, 1003, dtype)
        result = all_reduce(inputs[rank].clone(), op)
        cases.reduced(result, reference.all_reduce(inputs, op), (dtype, op))
        results.append(result)
    return cases.digest(results)


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_dtype_and_op(world_size: int) -> None:
    digests = run_ranks(check_dtypes, world_size)
    assert len(set(digests)) == 1, "the ranks hold different bits"


def check_sizes(rank: int, world_size: int, dtype: torch.dtype) -> str:
    results = []
    for count in cases.counts(dtype.itemsize):
        inputs = cases.all_inputs(world_size, count, dtype, seed=count)
        result = all_reduce(inputs[rank].clone())
        cases.reduced(result, reference.all_reduce(inputs), (dtype, count))
        results.append(result)
    return cases.digest(results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_every_size_gives_the_same_bits_everywhere(world_size: int, dtype: torch.dtype) -> None:
    first = run_ranks(check_sizes, world_size, dtype=dtype)
    assert len(set(first)) == 1, "the ranks hold different bits"
    again = run_ranks(check_sizes, world_size, dtype=dtype)
    assert again == first, "a second run gave other bits"


def check_layouts(rank: int, world_size: int) -> None:
    for count in (7, 1000, 65539):
        inputs = cases.all_inputs(world_size, (count, 3), torch.float32)
        wanted = reference.all_reduce(inputs)
        mine = inputs[rank]
        transposed = mine.t().contiguous().t()
        for layout in (cases.holed(mine), cases.shifted(mine), transposed):
            cases.reduced(all_reduce(layout), wanted, (count, layout.stride()))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_strided_and_unaligned_tensors(world_size: int) -> None:
    run_ranks(check_layouts, world_size)


def check_neighbours(rank: int, world_size: int) -> None:
    for count in (1, 1000, 300_000):
        around = torch.full((count + 64,), float(rank))
        all_reduce(around[32:-32])
        edges = torch.cat([around[:32], around[-32:]])
        cases.same_bits(edges, torch.full((64,), float(rank)), f"around {count} elements")


def test_nothing_around_the_tensor_is_touched() -> None:
    run_ranks(check_neighbours, 2)


def check_nan(rank: int, world_size: int) -> None:
    for dtype in cases.FLOATS:
        for holder in range(world_size):
            for op in ("MIN", "MAX"):
                inputs = cases.all_inputs(world_size, 67, dtype)
                inputs[holder][::3] = float("nan")
                result = all_reduce(inputs[rank], op)
                what = (dtype, op, f"NaN on rank {holder}")
                assert result[::3].isnan().all(), f"{what}: NaN was lost"
                assert not result[1::3].isnan().any(), f"{what}: NaN where there was none"


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_nan_wins_min_and_max_whichever_rank_holds_it(world_size: int) -> None:
    run_ranks(check_nan, world_size)


def check_infinities(rank: int, world_size: int) -> None:
    inputs = [torch.tensor([float("inf"), -float("inf"), 0.0]) for _ in range(world_size)]
    inputs[0][0] = -float("inf")
    wanted = reference.all_reduce(inputs)
    cases.same_bits(all_reduce(inputs[rank].clone()), wanted, "inf - inf")
    for dtype, largest in ((torch.float16, 65504.0), (torch.bfloat16, 3.3e38)):
        big = torch.full((33,), largest, dtype=dtype)
        assert all_reduce(big).isinf().all(), f"{dtype}: the sum must overflow to infinity"


def test_infinities_and_overflow() -> None:
    run_ranks(check_infinities, 3)


def check_wrap(rank: int, world_size: int) -> None:
    for dtype, value in ((torch.int8, 100), (torch.uint8, 200), (torch.int64, (1 << 63) - 1)):
        inputs = [torch.full((65,), value, dtype=dtype) for _ in range(world_size)]
        wanted = reference.all_reduce(inputs)
        cases.same_bits(all_reduce(inputs[rank]), wanted, (dtype, "wraps"))


def test_integer_sums_wrap() -> None:
    run_ranks(check_wrap, 3)


def check_negative_average(rank: int, world_size: int) -> list[int]:
    return all_reduce(torch.tensor([-7 - rank, 7 + rank, -1]), "AVG").tolist()


def test_integer_average_truncates_towards_zero() -> None:
    assert run_ranks(check_negative_average, 2) == [[-7, 7, -1]] * 2  # -15 / 2, 15 / 2, -2 / 2
    assert run_ranks(check_negative_average, 4)[0] == [-8, 8, -1]  # -34 / 4


def check_premul(rank: int, world_size: int) -> None:
    for dtype in cases.FLOATS:
        for count in (5, 1000, 200_001):
            inputs = cases.all_inputs(world_size, count, dtype)
            result = all_reduce(inputs[rank].clone(), "PREMUL_SUM", 0.5)
            wanted = reference.all_reduce(inputs, "PREMUL_SUM", 0.5)
            cases.reduced(result, wanted, (dtype, count, "0.5 is exact"))
            result = all_reduce(inputs[rank].clone(), "PREMUL_SUM", 1 / 3)
            cases.close(result, reference.all_reduce(inputs, "PREMUL_SUM", 1 / 3), (dtype, count))


@pytest.mark.parametrize("world_size", [1, 3])
def test_premul_sum(world_size: int) -> None:
    run_ranks(check_premul, world_size)


def check_shapes(rank: int, world_size: int) -> None:
    for shape in ([], [1, 1, 1], [2, 3, 5, 7], [0, 4], [4, 0, 2]):
        inputs = cases.all_inputs(world_size, shape, torch.float64)
        cases.reduced(all_reduce(inputs[rank].clone()), reference.all_reduce(inputs), shape)


def test_shapes_from_zero_dimensions_to_four() -> None:
    run_ranks(check_shapes, 3)


def check_coalesced(rank: int, world_size: int) -> None:
    inputs = [cases.all_inputs(world_size, count, torch.float32, count) for count in (3, 70_000)]
    mine = [given[rank].clone() for given in inputs]
    dist.all_reduce_coalesced(mine)
    for result, given in zip(mine, inputs, strict=True):
        cases.reduced(result, reference.all_reduce(given), "coalesced")


@pytest.mark.parametrize("world_size", [1, 3])
def test_all_reduce_coalesced(world_size: int) -> None:
    run_ranks(check_coalesced, world_size)


def check_leaf(rank: int, world_size: int) -> tuple[int, float]:
    leaf = torch.ones(3, requires_grad=True)
    before = leaf._version
    dist.all_reduce(leaf.data)
    weight = torch.ones(3)
    square = (weight * leaf).sum()
    square.backward()
    with torch.no_grad():
        dist.all_reduce(leaf)
    return leaf._version - before, float(leaf[0].detach())


def test_a_parameter_is_reduced_in_place() -> None:
    assert [value for _, value in run_ranks(check_leaf, 2)] == [4.0, 4.0]
