"""all_to_all_4d: values, gradients, and what torch's compilers ask of an op."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch import Tensor, nn

import fastvideo_dist.ops  # defines torch.ops.fastvideo_dist
import reference
from c10d import cases
from harness import run_ranks

# [batch, sequence of one rank, heads, dimension of a head], heads to be multiplied by the ranks.
SHAPES = [(1, 1, 1, 1), (2, 5, 3, 4), (1, 128, 2, 33), (3, 0, 1, 8), (1, 700, 4, 64)]


def exchange(x: Tensor, scatter_dim: int, gather_dim: int) -> Tensor:
    return fastvideo_dist.ops.all_to_all_4d(x, scatter_dim, gather_dim)


def raw(x: Tensor, scatter_dim: int, gather_dim: int, world_size: int) -> Tensor:
    return torch.ops.fastvideo_dist.all_to_all_4d(x, scatter_dim, gather_dim, "0", world_size)


def shape_for(shape: tuple[int, ...], dim: int, world_size: int) -> list[int]:
    return [size * world_size if d == dim else size for d, size in enumerate(shape)]


def check_values(rank: int, world_size: int) -> None:
    for shape, (scatter, gather) in itertools.product(SHAPES, [(2, 1), (1, 2)]):
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            inputs = cases.all_inputs(world_size, shape_for(shape, scatter, world_size), dtype)
            result = exchange(inputs[rank], scatter, gather)
            wanted = reference.all_to_all_4d(inputs, scatter, gather)[rank]
            cases.same_bits(result, wanted, (shape, scatter, gather, dtype))
            assert result.is_contiguous()
            back = exchange(result, gather, scatter)
            cases.same_bits(back, inputs[rank], ("there and back", shape, scatter, gather))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_values_in_both_directions(world_size: int) -> None:
    run_ranks(check_values, world_size)


def check_definition(rank: int, world_size: int) -> None:
    """The sentence of the documentation, element by element, without the reference."""
    local, heads = 3, 2
    inputs = cases.all_inputs(world_size, (2, local, heads * world_size, 5), torch.float64)
    y = exchange(inputs[rank], 2, 1)
    for j, s, h in itertools.product(range(world_size), range(local), range(heads)):
        wanted = inputs[j][:, s, rank * heads + h, :]
        cases.same_bits(y[:, j * local + s, h, :], wanted, (j, s, h))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_definition(world_size: int) -> None:
    run_ranks(check_definition, world_size)


def transposed(x: Tensor) -> Tensor:
    """The same values with the two middle dimensions swapped in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def check_all_pairs(rank: int, world_size: int) -> None:
    for scatter, gather in itertools.permutations(range(4), 2):
        shape = shape_for((2, 3, 4, 5), scatter, world_size)
        inputs = cases.all_inputs(world_size, shape, torch.int16)
        wanted = reference.all_to_all_4d(inputs, scatter, gather)[rank]
        cases.same_bits(exchange(inputs[rank], scatter, gather), wanted, (scatter, gather))
        for layout in (cases.holed, cases.shifted, transposed):
            strided = layout(inputs[rank])
            cases.same_bits(
                exchange(strided, scatter, gather), wanted, (scatter, gather, "strided")
            )


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_pair_of_dimensions_and_strided_inputs(world_size: int) -> None:
    run_ranks(check_all_pairs, world_size)


def check_gradient(rank: int, world_size: int) -> None:
    for scatter, gather in [(2, 1), (1, 2)]:
        shape = shape_for((2, 3, 2, 5), scatter, world_size)
        inputs = [x.requires_grad_() for x in cases.all_inputs(world_size, shape, torch.float64)]
        results = reference.all_to_all_4d(inputs, scatter, gather)
        weights = cases.all_inputs(world_size, results[0].shape, torch.float64, seed=1)
        # One process: the loss of all ranks together.
        total = sum((y.square() * w).sum() for y, w in zip(results, weights, strict=True))
        assert isinstance(total, Tensor)
        wanted = torch.autograd.grad(total, inputs[rank])[0]

        mine = inputs[rank].detach().clone().requires_grad_()
        (exchange(mine, scatter, gather).square() * weights[rank]).sum().backward()
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_gradients_are_those_of_one_process(world_size: int) -> None:
    run_ranks(check_gradient, world_size)


def check_gradcheck(rank: int, world_size: int) -> None:
    """Numerically, where one rank is all there is."""
    x = cases.make(0, (1, 2, 3, 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: exchange(t, 2, 1), (x,))
    assert torch.autograd.gradgradcheck(lambda t: exchange(t, 1, 2), (x,))


def test_gradcheck_on_one_rank() -> None:
    run_ranks(check_gradcheck, 1)


def check_opcheck(rank: int, world_size: int) -> None:
    op = torch.ops.fastvideo_dist.all_to_all_4d
    for scatter, gather, needs_grad in [(2, 1, False), (1, 2, True), (2, 1, True)]:
        x = cases.make(rank, shape_for((2, 3, 2, 5), scatter, world_size), torch.float32)
        x.requires_grad_(needs_grad)
        torch.library.opcheck(op, (x, scatter, gather, "0", world_size))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_opcheck(world_size: int) -> None:
    run_ranks(check_opcheck, world_size, timeout=100)


def attention_like(x: Tensor, world_size: int) -> Tensor:
    heads = raw(x, 2, 1, world_size)
    return raw(torch.sin(heads) * 2.0, 1, 2, world_size)


def check_compile(rank: int, world_size: int, dynamic: bool) -> None:
    # Probing for vector instructions and precompiling headers take a minute and are not the op's.
    plain = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}
    compiled = torch.compile(attention_like, fullgraph=True, dynamic=dynamic, options=plain)
    for length in (4, 6, 9) if dynamic else (4,):
        x = cases.make(rank, (1, length, 2 * world_size, 8), torch.float32).requires_grad_()
        result = compiled(x, world_size)
        torch.testing.assert_close(result, torch.sin(x) * 2.0)
        (gradient,) = torch.autograd.grad(result.sum(), x)
        torch.testing.assert_close(gradient, torch.cos(x) * 2.0)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile_fullgraph(dynamic: bool) -> None:
    run_ranks(check_compile, 2, dynamic=dynamic, timeout=110)


class Exchange(nn.Module):
    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.world_size = world_size

    def forward(self, x: Tensor) -> Tensor:
        return raw(x, 2, 1, self.world_size) + 1.0


def check_export(rank: int, world_size: int) -> None:
    inputs = cases.all_inputs(world_size, (1, 4, 2 * world_size, 8), torch.float32)
    program = torch.export.export(Exchange(world_size), (inputs[rank],))
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("fastvideo_dist.all_to_all_4d" in target for target in targets), targets
    wanted = reference.all_to_all_4d(inputs, 2, 1)[rank] + 1.0
    cases.same_bits(program.module()(inputs[rank]), wanted, "exported")


def test_export() -> None:
    run_ranks(check_export, 2, timeout=100)


WORLD = 3
ERRORS = {
    "a size that does not divide": (lambda x: raw(x, 3, 1, WORLD), r"\b4\b.*\b3\b"),
    "three dimensions": (lambda x: exchange(x[0], 2, 1), "4 dimensions"),
    "a dimension out of range": (lambda x: exchange(x, 4, 1), "4"),
    "a negative dimension": (lambda x: exchange(x, -1, 1), "-1"),
    "one dimension twice": (lambda x: exchange(x, 2, 2), "differ"),
    "a wrong group size": (lambda x: raw(x, 2, 1, 1), r"3.*1|1.*3"),
    "no such group": (
        lambda x: torch.ops.fastvideo_dist.all_to_all_4d(x, 2, 1, "no such", WORLD),
        "no such",
    ),
}


def check_errors(rank: int, world_size: int) -> list[str]:
    wrong = []
    x = cases.make(rank, (1, 2, 3, 4), torch.float32)
    for name, (call, pattern) in ERRORS.items():
        try:
            call(x)
            wrong.append(f"{name}: no exception")
        except ValueError as error:
            if not re.search(pattern, str(error)):
                wrong.append(f"{name}: the message does not match {pattern!r}: {error}")
        except BaseException as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        back = exchange(exchange(x, 2, 1), 1, 2)
        if not torch.equal(back, x):
            wrong.append(f"{name}: the group is not as good as before")
    return wrong


def test_errors() -> None:
    for rank, wrong in enumerate(run_ranks(check_errors, WORLD)):
        assert not wrong, f"rank {rank}:\n" + "\n".join(wrong)
