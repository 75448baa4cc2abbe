"""all_to_all_4d of lists, of unequal parts and of strided tensors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from c10d import cases
from fastvideo_dist import ops
from harness import run_ranks
from ops.meaning import exchanged

WORLDS = pytest.mark.parametrize("world_size", [1, 2, 3, 4])


def test_split_sizes_are_those_of_tensor_split() -> None:
    for size, ranks in itertools.product(range(14), range(1, 6)):
        wanted = [len(part) for part in torch.arange(size).tensor_split(ranks)]
        assert ops.split_sizes(size, ranks) == wanted
    with pytest.raises(ValueError, match="0 ranks"):
        ops.split_sizes(3, 0)


def mine(whole: Tensor, dim: int, sizes: Sequence[int], rank: int) -> Tensor:
    return whole.split(list(sizes), dim=dim)[rank]


def check_round_trip(rank: int, world_size: int) -> None:
    """Slices of a sequence to slices of the heads and back, neither divisible."""
    for length, heads, dtype in itertools.product(
        (1, 7, 10, 1029), (1, 5, 8), (torch.float32, torch.bfloat16, torch.bool)
    ):
        lengths = ops.split_sizes(length, world_size)
        per_rank = ops.split_sizes(heads, world_size)
        whole = cases.make(0, (2, length, heads, 24), dtype)
        x = mine(whole, 1, lengths, rank)
        there = ops.all_to_all_4d(x, 2, 1, gather_sizes=lengths)
        cases.same_bits(there, mine(whole, 2, per_rank, rank), ("there", length, heads, dtype))
        back = ops.all_to_all_4d(there, 1, 2, gather_sizes=per_rank)
        cases.same_bits(back, x, ("back", length, heads, dtype))


@WORLDS
def test_unequal_parts_there_and_back(world_size: int) -> None:
    run_ranks(check_round_trip, world_size)


def check_chosen_sizes(rank: int, world_size: int) -> None:
    lengths = [3 * r for r in range(world_size)]  # rank 0 has nothing
    heads = [world_size - r for r in range(world_size)]
    whole = cases.make(0, (1, sum(lengths), sum(heads), 8), torch.float32)
    there = ops.all_to_all_4d(
        mine(whole, 1, lengths, rank), scatter_sizes=heads, gather_sizes=lengths
    )
    cases.same_bits(there, mine(whole, 2, heads, rank), "chosen")


@WORLDS
def test_chosen_sizes(world_size: int) -> None:
    run_ranks(check_chosen_sizes, world_size)


def qkv(world_size: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """q, k and v of each rank: of fewer heads in k and v, and another length in v."""
    shapes = [(2, 6, 3 * world_size, 16), (2, 6, world_size, 16), (1, 9, world_size + 1, 8)]
    return [
        [cases.make(rank, shape, dtype, seed=i) for i, shape in enumerate(shapes)]
        for rank in range(world_size)
    ]


def check_list(rank: int, world_size: int) -> None:
    for dtype in (torch.float32, torch.int64, torch.float8_e4m3fn):
        inputs = qkv(world_size, dtype)
        results = ops.all_to_all_4d(inputs[rank])
        assert isinstance(results, list)
        for i, result in enumerate(results):
            wanted = exchanged([of_rank[i] for of_rank in inputs], 2, 1)[rank]
            cases.same_bits(result, wanted, (dtype, i))
        heads = [ops.split_sizes(x.shape[2], world_size) for x in inputs[rank]]
        back = ops.all_to_all_4d(results, 1, 2, gather_sizes=heads)
        for x, again in zip(inputs[rank], back, strict=True):
            cases.same_bits(again, x, (dtype, "back"))


@WORLDS
def test_several_tensors_at_once(world_size: int) -> None:
    run_ranks(check_list, world_size)


def check_list_gradient(rank: int, world_size: int) -> None:
    inputs = [[x.requires_grad_() for x in xs] for xs in qkv(world_size, torch.float64)]
    results = [exchanged([xs[i] for xs in inputs], 2, 1) for i in range(3)]
    # The second result is not used, by anybody.
    loss = torch.stack([(y**3).sum() for i in (0, 2) for y in results[i]]).sum()
    firsts = torch.autograd.grad(loss, inputs[rank], create_graph=True, materialize_grads=True)

    q, k, v = (x.detach().clone().requires_grad_() for x in inputs[rank])
    a, _, c = ops.all_to_all_4d([q, k, v])
    ((a**3).sum() + (c**3).sum()).backward(create_graph=True)
    for x, wanted in zip((q, k, v), firsts, strict=True):
        assert x.grad is not None
        torch.testing.assert_close(x.grad, wanted)
    assert q.grad is not None
    (second,) = torch.autograd.grad((q.grad**2).sum(), q)
    torch.testing.assert_close(second, 2 * 9 * 2 * q.detach() ** 3)


@WORLDS
def test_gradients_of_a_list(world_size: int) -> None:
    run_ranks(check_list_gradient, world_size)


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values at other strides, as models have them."""
    fused = torch.zeros(*x.shape[:2], 3, *x.shape[2:], dtype=x.dtype)
    fused[:, :, 1] = x
    longer = torch.zeros(x.shape[0], x.shape[1] + 3, *x.shape[2:], dtype=x.dtype)
    longer[:, 2:-1] = x
    return {
        "heads first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "one of three in a projection": fused[:, :, 1],
        "a part of a longer sequence": longer[:, 2:-1],
        "batch inside": x.transpose(0, 1).contiguous().transpose(0, 1),
        "last dimension first": x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        "holed": cases.holed(x),
        "shifted": cases.shifted(x),
    }


def check_layouts(rank: int, world_size: int) -> None:
    shape = (2, 4 * world_size, 2 * world_size, 64)
    for scatter, gather in itertools.permutations(range(3), 2):
        sized = list(shape)
        sized[0] = 2 * world_size if scatter == 0 else 2
        inputs = cases.all_inputs(world_size, sized, torch.bfloat16)
        wanted = exchanged(inputs, scatter, gather)[rank]
        names = list(layouts(inputs[rank]))
        for name, x in layouts(inputs[rank]).items():
            what = (name, scatter, gather)
            cases.same_bits(ops.all_to_all_4d(x, scatter, gather), wanted, what)
            # No two ranks with the same strides.
            other = layouts(inputs[rank])[names[(names.index(name) + rank) % len(names)]]
            cases.same_bits(ops.all_to_all_4d(other, scatter, gather), wanted, (*what, "mixed"))
            joined = ops.all_gather(other, 1)
            cases.same_bits(joined, torch.cat(inputs, 1), (*what, "all_gather"))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_strided_inputs(world_size: int) -> None:
    run_ranks(check_layouts, world_size)


def check_large(rank: int, world_size: int) -> None:
    """Over several rounds of the pipeline, whose ends fall anywhere in a block."""
    inputs = [
        [cases.make(r, (1, 3000 + i, 6 * world_size, 40), torch.bfloat16, seed=i) for i in range(3)]
        for r in range(world_size)
    ]
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs[rank]]
    for tensors in (inputs[rank], strided, [strided[0], inputs[rank][1], strided[2]]):
        for i, result in enumerate(ops.all_to_all_4d(tensors)):
            wanted = exchanged([xs[i] for xs in inputs], 2, 1)[rank]
            cases.same_bits(result, wanted, ("large", i))


@pytest.mark.parametrize("world_size", [2, 4])
def test_large_lists(world_size: int) -> None:
    run_ranks(check_large, world_size)
