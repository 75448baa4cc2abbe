"""What torch's compilers ask of an op: opcheck, torch.compile, torch.export, and no call lost."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from c10d import cases
from fastvideo_dist import ops
from harness import run_ranks
from ops.meaning import OPS

# Probing for vector instructions and precompiling headers take a minute and are not the ops'.
PLAIN = {"cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}


def floats(rank: int, shape: object) -> Tensor:
    return cases.make(rank, shape, torch.float32)  # type: ignore[arg-type]


def check_opcheck(rank: int, world_size: int) -> None:
    base = torch.ops.fastvideo_dist
    sizes = ops.split_sizes(7, world_size)
    even = floats(rank, (2, 3 * world_size, 4))
    uneven = floats(rank, (2, sizes[rank], 4))
    whole = floats(rank, (2, 7, 4))
    q = floats(rank, (1, sizes[rank], 5, 4))
    k = floats(rank, (1, 3, world_size, 2))
    split = ops.split_sizes(5, world_size) + ops.split_sizes(world_size, world_size)
    here = ("0", world_size, rank)
    samples = [
        (base.all_reduce, (even, "sum", *here[:2])),
        (base.all_reduce, (even, "avg", *here[:2])),
        (base.reduce, (even, 0, "sum", *here[:2])),
        (base.broadcast, (even, world_size - 1, *here[:2])),
        (base.all_gather, (even, 1, None, *here)),
        (base.all_gather, (uneven, 1, sizes, *here)),
        (base.reduce_scatter, (even, 1, "sum", None, *here)),
        (base.reduce_scatter, (whole, 1, "avg", sizes, *here)),
        (base.shard, (even, 1, None, True, *here)),
        (base.shard, (whole, 1, sizes, False, *here)),
        (base.all_to_all_4d_list, ([q, k], 2, 1, split, sizes + [3] * world_size, *here)),
        (base.all_to_all_4d_list, ([k, k + 1], 2, 1, None, None, *here)),
    ]
    for op, arguments in samples:
        torch.library.opcheck(op, arguments)
        torch.library.opcheck(op, (asking(arguments[0]), *arguments[1:]))


def asking(x: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """A copy that asks for a gradient."""
    if isinstance(x, list):
        return [one.clone().requires_grad_() for one in x]
    return x.clone().requires_grad_()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_opcheck(world_size: int) -> None:
    run_ranks(check_opcheck, world_size, timeout=110)


def check_traced(rank: int, world_size: int, dynamic: bool) -> None:
    """Every op by its public function, without Inductor, whose part is the same for all."""
    for name, op in OPS.items():

        def step(x: Tensor, op=op) -> Tensor:  # type: ignore[no-untyped-def]
            return op.call(x * 2, rank, world_size) + 1

        torch._dynamo.reset()  # else these are many versions of one function, of which it limits
        compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        inputs = op.inputs(world_size, floats)
        x = inputs[rank].requires_grad_()
        other = x.detach().clone().requires_grad_()
        torch.testing.assert_close(compiled(x), step(other), msg=name)
        compiled(x).sum().backward()
        step(other).sum().backward()
        torch.testing.assert_close(x.grad, other.grad, msg=name)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_every_op_is_traced(dynamic: bool) -> None:
    run_ranks(check_traced, 3, dynamic=dynamic, timeout=110)


def attention_like(q: Tensor, k: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """An exchange there and back with everything that can be unequal."""
    world = dist.get_world_size(group)
    length, heads = q.shape[1], q.shape[2]
    a, b = ops.all_to_all_4d([q, k], group=group)
    mixed = torch.sin(a) + b.mean()
    return (
        ops.all_to_all_4d(mixed, 1, 2, group, gather_sizes=ops.split_sizes(heads, world)) * length
    )


def check_inductor(rank: int, world_size: int, dynamic: bool) -> None:
    group = dist.new_group(list(range(world_size)))
    compiled = torch.compile(attention_like, fullgraph=True, dynamic=dynamic, options=PLAIN)
    for length in (4, 6, 9) if dynamic else (4,):
        for which in (None, group):
            q = floats(rank, (1, length, 5, 8)).requires_grad_()
            k = floats(rank, (1, length, 3, 8))
            result = compiled(q, k, which)
            torch.testing.assert_close(result, attention_like(q, k, which))
            (gradient,) = torch.autograd.grad(result.sum(), q)
            (wanted,) = torch.autograd.grad(attention_like(q, k, which).sum(), q)
            torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiled_exchange_of_unequal_parts(dynamic: bool) -> None:
    run_ranks(check_inductor, 2, dynamic=dynamic, timeout=110)


def one_ignores(x: Tensor, rank: int) -> Tensor:
    """Rank 0 uses no result but the last; the others use all. Two calls are equal on rank 0."""
    first = ops.all_reduce(x)
    second = ops.all_reduce(x if rank == 0 else x + 1)
    ops.all_gather(x)
    third = ops.broadcast(x * 2, 1)
    if rank == 0:
        return third
    return first + second + third


def check_ignored(rank: int, world_size: int, needs_grad: bool) -> None:
    inputs = cases.all_inputs(world_size, 6, torch.float32)
    wanted = one_ignores(inputs[rank], rank)
    torch._dynamo.reset()
    compiled = torch.compile(one_ignores, fullgraph=True, options=PLAIN)
    for _ in range(2):
        result = compiled(inputs[rank].clone().requires_grad_(needs_grad), rank)
        torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize("needs_grad", [False, True], ids=["forward", "with gradients"])
def test_a_call_whose_result_one_rank_ignores_is_made(needs_grad: bool) -> None:
    run_ranks(check_ignored, 2, needs_grad=needs_grad, timeout=110)


def block(x: Tensor, rank: int) -> Tensor:
    """Several kinds of calls; of the all_reduce rank 0 does not use the result."""
    q, k = ops.all_to_all_4d([torch.cos(x), torch.sin(x)])
    total = ops.all_reduce(x.detach())
    heads = ops.split_sizes(x.shape[2], dist.get_world_size())
    back = ops.all_to_all_4d(torch.sin(q * k), 1, 2, gather_sizes=heads)
    return torch.cos(back if rank == 0 else back + total)


def checkpointed(x: Tensor, rank: int) -> Tensor:
    for _ in range(2):
        x = checkpoint(block, x, rank, use_reentrant=False)
    return x


def check_checkpoint(rank: int, world_size: int, backend: str) -> None:
    options = PLAIN if backend == "inductor" else None
    torch._dynamo.reset()
    compiled = torch.compile(checkpointed, fullgraph=True, backend=backend, options=options)
    x = floats(rank, (1, 4, 3, 2)).requires_grad_()
    results = [function(x, rank) for function in (compiled, checkpointed)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result.sum(), x)[0] for result in results]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_checkpoints_in_a_compiled_function(backend: str) -> None:
    run_ranks(check_checkpoint, 2, backend=backend, timeout=110)


class Model(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        a, b = ops.all_to_all_4d([x, x + 1])
        ops.all_reduce(x)
        heads = ops.split_sizes(x.shape[2], dist.get_world_size())
        return ops.all_gather(a * b, 2, sizes=heads)


def check_export(rank: int, world_size: int) -> None:
    x = floats(rank, (1, 4, 2 * world_size + 1, 8))
    wanted = Model()(x)
    length = torch.export.Dim("length", min=2, max=64)
    for shapes in (None, {"x": {1: length}}):
        program = torch.export.export(Model(), (x,), dynamic_shapes=shapes)
        cases.same_bits(program.module()(x), wanted, "exported")
        lowered = program.run_decompositions()
        calls = str(lowered.graph)
        for name in ("all_to_all_4d_list", "all_reduce", "all_gather"):
            assert f"fastvideo_dist.{name}" in calls, calls
        cases.same_bits(lowered.module()(x), wanted, "lowered")


def test_export() -> None:
    run_ranks(check_export, 2, timeout=110)
