"""Every collective of torch.distributed on a GPU: each dtype, each reduction, and NCCL's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import reference
from c10d import cases
from gpu.one_gpu import WORLD, join, nccl_group, run, same_bytes
from rank_process import Control

pytestmark = pytest.mark.timeout(400)

COUNT = 1002  # even: parts of equal size
NOT_IN_NCCL = (torch.int16, torch.uint16)


def moved(
    rank: int, inputs: list[Tensor], device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """What each call leaves here, and what it should."""
    x = inputs[rank].to(device)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def result(name: str, wanted: Tensor) -> Tensor:
        seen[name] = (torch.empty(wanted.shape, dtype=wanted.dtype, device=device), wanted)
        return seen[name][0]

    y = result("broadcast", reference.broadcast(inputs, 1))
    y.copy_(x)
    dist.broadcast(y, 1)
    dist.all_gather_into_tensor(result("all_gather_into_tensor", torch.cat(inputs)), x)
    dist.all_gather([result(f"all_gather {r}", inputs[r]) for r in range(WORLD)], x)
    parts = [result(f"gather {r}", inputs[r]) for r in range(WORLD)] if rank == 0 else None
    dist.gather(x, parts, dst=0)
    halves = list(inputs[1].chunk(WORLD))
    from_1 = [half.to(device) for half in halves] if rank == 1 else None
    dist.scatter(result("scatter", halves[rank]), from_1, src=1)
    even = reference.all_to_all_single(inputs)[rank]
    dist.all_to_all_single(result("all_to_all_single", even), x)
    splits = [[1, COUNT - 1], [COUNT - 1, 1]]
    uneven = reference.all_to_all_single(inputs, splits)[rank]
    incoming = [splits[r][rank] for r in range(WORLD)]
    dist.all_to_all_single(result("uneven", uneven), x, incoming, splits[rank])
    if rank == 0:
        dist.send(x, 1)
    else:
        dist.recv(result("recv", inputs[0]), 0)
    return seen


def every_dtype(control: Control) -> list[str]:
    device = join(control)
    wrong = []
    for dtype in cases.MOVED:
        inputs = [cases.make(rank, COUNT, dtype) for rank in range(WORLD)]
        for name, (found, wanted) in moved(control.rank, inputs, device).items():
            if not same_bytes(found, wanted):
                wrong.append(f"{name} of {dtype}")
    dist.barrier()
    dist.destroy_process_group()
    return wrong


def test_every_dtype_is_moved() -> None:
    assert run(every_dtype) == [[], []]


def is_in_nccl(dtype: torch.dtype, op: str) -> bool:
    if dtype in NOT_IN_NCCL or op == "BXOR":
        return False
    return dtype == torch.bool or op not in cases.BITWISE


def every_reduction(control: Control) -> list[str]:
    device = join(control)
    wrong = []
    for dtype, op in cases.reductions():
        inputs = [cases.make(rank, COUNT, dtype) for rank in range(WORLD)]
        wanted = reference.all_reduce(inputs, op)
        x = inputs[control.rank].to(device)
        kind = getattr(dist.ReduceOp, op)
        part = torch.empty(COUNT // WORLD, dtype=dtype, device=device)
        try:
            dist.reduce_scatter_tensor(part, x, op=kind)
            dist.all_reduce(x, op=kind)
        except NotImplementedError:
            if is_in_nccl(dtype, op):
                wrong.append(f"{op} of {dtype} is refused")
            continue
        for found, want in [(x, wanted), (part, wanted.chunk(WORLD)[control.rank])]:
            close = dtype.is_floating_point or dtype.is_complex
            if close:
                # Two addends: the order is none. The factor of an average may round once more.
                torch.testing.assert_close(found.cpu(), want, equal_nan=True)
            elif not same_bytes(found, want):
                wrong.append(f"{op} of {dtype}")
    dist.destroy_process_group()
    return wrong


def test_every_reduction() -> None:
    assert run(every_reduction) == [[], []]


Call = Callable[[Tensor, dist.ProcessGroup | None], Tensor]


def all_reduce(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    dist.all_reduce(x, group=group)
    return x


def reduce_scatter(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    y = x.new_empty(len(x) // WORLD)
    dist.reduce_scatter_tensor(y, x, op=dist.ReduceOp.AVG, group=group)
    return y


def premultiplied(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    dist.all_reduce(x, op=dist._make_nccl_premul_sum(0.3), group=group)
    return x


def all_to_all(x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    y = torch.empty_like(x)
    work = dist.all_to_all_single(y, x, group=group, async_op=True)
    assert work is not None
    work.wait()
    return y


def parity(control: Control) -> list[str]:
    device = join(control)
    theirs = nccl_group()
    wrong = []
    for call in (all_reduce, reduce_scatter, premultiplied, all_to_all):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            x = cases.make(control.rank, 1 << 16, dtype).to(device)
            if not same_bytes(call(x.clone(), None), call(x.clone(), theirs)):
                wrong.append(f"{call.__name__} of {dtype}")
    dist.destroy_process_group()
    return wrong


def test_results_are_those_of_torchs_own_backend() -> None:
    assert run(parity) == [[], []]
