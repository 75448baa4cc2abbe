"""Every op: values and gradients against one process, at any strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import reference
from c10d import cases
from fastvideo_dist import ops
from harness import run_ranks
from ops.meaning import OPS, Op, gathered

NAMES = pytest.mark.parametrize("name", OPS)
WORLDS = pytest.mark.parametrize("world_size", [1, 2, 3, 4])


def doubles(rank: int, shape: object) -> Tensor:
    return cases.make(rank, shape, torch.float64)  # type: ignore[arg-type]


def transposed(x: Tensor) -> Tensor:
    """The same values with the first and last dimension swapped in memory."""
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def check_values(rank: int, world_size: int) -> None:
    for name, op in OPS.items():
        inputs = op.inputs(world_size, doubles)
        wanted = op.meaning(inputs)[rank]
        for layout in (torch.clone, cases.holed, cases.shifted, transposed):
            x = layout(inputs[rank])
            before = x.clone()
            y = op.call(x, rank, world_size)
            torch.testing.assert_close(y, wanted, rtol=1e-14, atol=1e-14, msg=name)
            assert y.is_contiguous(), name
            assert torch.equal(x, before), f"{name} changed its argument"
            assert y.data_ptr() != x.data_ptr() or y.numel() == 0, f"{name} returned its argument"


@WORLDS
def test_values(world_size: int) -> None:
    run_ranks(check_values, world_size)


def check_gradient(rank: int, world_size: int) -> None:
    for name, op in OPS.items():
        inputs = [x.requires_grad_() for x in op.inputs(world_size, doubles)]
        results = op.meaning(inputs)
        weights = [cases.make(r, y.shape, torch.float64, seed=1) for r, y in enumerate(results)]
        # One process: the loss of all ranks together.
        loss = torch.stack([(y**3 * w).sum() for y, w in zip(results, weights, strict=True)]).sum()
        firsts = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
        seconds = torch.autograd.grad(
            torch.stack([(first**2).sum() for first in firsts]).sum(),
            inputs,
            materialize_grads=True,
        )

        x = inputs[rank].detach().clone().requires_grad_()
        y = op.call(x, rank, world_size)
        (first,) = torch.autograd.grad((y**3 * weights[rank]).sum(), x, create_graph=True)
        torch.testing.assert_close(first, firsts[rank], rtol=1e-11, atol=1e-11, msg=name)
        (second,) = torch.autograd.grad((first**2).sum(), x)
        torch.testing.assert_close(second, seconds[rank], rtol=1e-11, atol=1e-11, msg=name)


@WORLDS
def test_gradients_and_their_gradients_are_those_of_one_process(world_size: int) -> None:
    run_ranks(check_gradient, world_size)


def check_tangent(rank: int, world_size: int) -> None:
    for name, op in OPS.items():
        inputs = op.inputs(world_size, doubles)
        along = op.inputs(world_size, lambda r, shape: cases.make(r, shape, torch.float64, seed=1))

        def together(*xs: Tensor, op: Op = op) -> list[Tensor]:
            return [y**3 for y in op.meaning(list(xs))]

        def alone(x: Tensor, op: Op = op) -> Tensor:
            result: Tensor = op.call(x, rank, world_size) ** 3
            return result

        values, tangents = torch.func.jvp(together, tuple(inputs), tuple(along))
        value, tangent = torch.func.jvp(alone, (inputs[rank],), (along[rank],))
        torch.testing.assert_close(value, values[rank], rtol=1e-13, atol=1e-13, msg=name)
        torch.testing.assert_close(tangent, tangents[rank], rtol=1e-13, atol=1e-13, msg=name)

        def slope(x: Tensor) -> Tensor:  # reverse mode under forward mode
            (result,) = torch.autograd.grad(alone(x).sum(), x, create_graph=True)
            return result

        with forward_ad.dual_level():
            x = inputs[rank].clone().requires_grad_()
            y = alone(forward_ad.make_dual(x, along[rank]))
            dy = forward_ad.unpack_dual(y).tangent
            first = torch.autograd.grad(dy.sum(), x)[0]  # forward mode under reverse mode
            second = forward_ad.unpack_dual(slope(forward_ad.make_dual(x, along[rank]))).tangent
        torch.testing.assert_close(first, second, rtol=1e-11, atol=1e-11, msg=name)


@WORLDS
def test_tangents_are_those_of_one_process(world_size: int) -> None:
    run_ranks(check_tangent, world_size)


def check_list_tangents(rank: int, world_size: int) -> None:
    """Of several tensors one has a tangent, on each rank another one."""
    shape = (1, 2, world_size, 3)
    xs = [doubles(rank + i, shape) for i in range(world_size)]
    with forward_ad.dual_level():
        along = doubles(rank, shape)
        xs[rank] = forward_ad.make_dual(xs[rank], along)
        tangents = [forward_ad.unpack_dual(y).tangent for y in ops.all_to_all_4d(xs)]
        for i, tangent in enumerate(tangents):
            mine = along if i == rank else torch.zeros_like(along)
            cases.same_bits(tangent, ops.all_to_all_4d(mine), f"tensor {i}")


def test_tangents_of_several_tensors_travel_together() -> None:
    run_ranks(check_list_tangents, 2)


def check_shard(rank: int, world_size: int) -> None:
    whole = cases.make(0, (2, 7, 3), torch.float64)
    sizes = ops.split_sizes(7, world_size)
    for scale_grad in (True, False):
        x = whole.clone().requires_grad_()
        y = ops.shard(x, 1, scale_grad=scale_grad)
        cases.same_bits(y, whole.split(sizes, dim=1)[rank], "shard")
        assert y.is_contiguous()
        y.backward(torch.full_like(y, rank + 1.0))
        wanted = torch.cat(
            [torch.full((2, n, 3), r + 1.0, dtype=torch.float64) for r, n in enumerate(sizes)], 1
        )
        assert x.grad is not None
        torch.testing.assert_close(x.grad, wanted / world_size if scale_grad else wanted)
        back = ops.all_gather(y, 1, sizes=sizes)
        cases.same_bits(back, whole, "shard and back")


@WORLDS
def test_shard(world_size: int) -> None:
    run_ranks(check_shard, world_size)


def check_dtypes(rank: int, world_size: int) -> None:
    for dtype in cases.MOVED:
        shape = (3, 2 * world_size, 1, 33)
        inputs = cases.all_inputs(world_size, shape, dtype)
        x = transposed(inputs[rank].view(torch.int8)).view(dtype) if dtype.itemsize == 1 else None
        for mine in (inputs[rank], x):
            if mine is None:
                continue
            cases.same_bits(ops.all_gather(mine, 2), gathered(inputs, 2)[rank], ("gather", dtype))
            cases.same_bits(ops.broadcast(mine, 0), inputs[0], ("broadcast", dtype))
            wanted = reference.all_to_all_4d(inputs, 1, 2)[rank]
            cases.same_bits(ops.all_to_all_4d(mine, 1, 2), wanted, ("all_to_all_4d", dtype))
            (result,) = ops.all_to_all_4d([mine], 1, 2)
            cases.same_bits(result, wanted, ("list", dtype))
            cases.same_bits(ops.shard(mine, 1), inputs[rank].chunk(world_size, 1)[rank], "shard")


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_dtype_is_moved(world_size: int) -> None:
    run_ranks(check_dtypes, world_size)


def check_reductions(rank: int, world_size: int) -> None:
    for dtype, op in cases.reductions():
        inputs = cases.all_inputs(world_size, (4 * world_size, 5), dtype)
        wanted = reference.all_reduce(inputs, op)
        compare = cases.close if op == "PRODUCT" or dtype.is_complex else cases.same_bits
        word = op.lower()
        compare(ops.all_reduce(inputs[rank], word), wanted, ("all_reduce", dtype, op))
        mine = wanted.chunk(world_size)[rank]
        compare(ops.reduce_scatter(inputs[rank], 0, word), mine, ("reduce_scatter", dtype, op))


@pytest.mark.parametrize("world_size", [2, 3])
def test_every_reduction(world_size: int) -> None:
    run_ranks(check_reductions, world_size)


def check_lazy(rank: int, world_size: int) -> None:
    x = cases.make(rank, (2, 3), torch.complex64)
    wanted = torch.cat([cases.make(r, (2, 3), torch.complex64).conj() for r in range(world_size)])
    cases.same_bits(ops.all_gather(x.conj()), wanted.resolve_conj(), "conjugated")
    expanded = torch.full((2, 1), float(rank)).expand(2, 5)
    cases.same_bits(ops.all_gather(expanded)[2 * rank : 2 * rank + 2], expanded, "expanded")
    for empty in (torch.empty(0, 3), torch.empty(3, 0)):
        assert ops.all_gather(empty, 1).shape == (empty.shape[0], empty.shape[1] * world_size)
        assert ops.all_reduce(empty).shape == empty.shape
    few = ops.all_gather(torch.ones(1 if rank == 0 else 0), sizes=[1] + [0] * (world_size - 1))
    assert few.tolist() == [1.0]


def test_lazy_expanded_and_empty_tensors() -> None:
    run_ranks(check_lazy, 2)


def check_sizes_beyond_staging(rank: int, world_size: int) -> None:
    for count in (40_000, 700_001):
        inputs = cases.all_inputs(world_size, (3, count), torch.float32)
        cases.same_bits(ops.all_gather(inputs[rank], 1), torch.cat(inputs, 1), count)
        cases.same_bits(ops.all_reduce(inputs[rank]), reference.all_reduce(inputs), count)
        sizes = [count - 5 * r for r in range(world_size)]
        mine = inputs[rank][:, : sizes[rank]]
        wanted = torch.cat([x[:, :n] for x, n in zip(inputs, sizes, strict=True)], 1)
        cases.same_bits(ops.all_gather(mine, 1, sizes=sizes), wanted, ("unequal", count))


def test_large_tensors() -> None:
    run_ranks(check_sizes_beyond_staging, 3)
