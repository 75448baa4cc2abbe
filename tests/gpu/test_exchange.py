"""all_to_all_4d on a GPU is, to the bit, the exchange with transposes of one process."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import reference
from c10d import cases
from fastvideo_dist import ops
from gpu.one_gpu import WORLD, join, run, same_bytes
from rank_process import Control

pytestmark = pytest.mark.timeout(400)

SHAPE = (2, 6, 4, 32)  # [B, S/W, H, D]


def inputs(dtype: torch.dtype, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> list[Tensor]:
    return [cases.make(rank, shape, dtype, seed) for rank in range(WORLD)]


def every_layout(control: Control) -> list[str]:
    device = join(control)
    rank = control.rank
    wrong = []
    for dtype in (torch.bool, torch.bfloat16, torch.float32, torch.complex64, torch.float8_e5m2):
        for there, back in [(2, 1), (1, 2)]:
            xs = inputs(dtype)
            want = reference.all_to_all_4d(xs, there, back)[rank]
            x = xs[rank].to(device)
            strided = x.transpose(1, 2).contiguous().transpose(1, 2)
            for kind, given in [("contiguous", x), ("strided", strided)]:
                if not same_bytes(ops.all_to_all_4d(given, there, back), want):
                    wrong.append(f"{kind} {dtype} ({there}, {back})")
    three = [inputs(torch.bfloat16, seed=seed) for seed in range(3)]
    together = ops.all_to_all_4d([xs[rank].to(device) for xs in three], 2, 1)
    for seed, found in enumerate(together):
        if not same_bytes(found, reference.all_to_all_4d(three[seed], 2, 1)[rank]):
            wrong.append(f"tensor {seed} of three")
    dist.barrier()
    dist.destroy_process_group()
    return wrong


def test_every_layout() -> None:
    assert run(every_layout) == [[], []]


def uneven_with_gradient(control: Control) -> list[str]:
    device = join(control)
    rank, wrong = control.rank, []
    lengths, heads = [5, 7], [1, 3]
    x = cases.make(rank, (2, lengths[rank], 4, 8), torch.float32).to(device).requires_grad_()
    y = ops.all_to_all_4d(x, 2, 1, scatter_sizes=heads, gather_sizes=lengths)
    parts = [cases.make(r, (2, lengths[r], 4, 8), torch.float32) for r in range(WORLD)]
    want = torch.cat([part.split(heads, 2)[rank] for part in parts], 1)
    if not same_bytes(y, want):
        wrong.append("the result")
    (y * y).sum().backward()
    if not same_bytes(x.grad, 2 * x):  # type: ignore[arg-type]
        wrong.append("the gradient")
    dist.barrier()
    dist.destroy_process_group()
    return wrong


def test_unequal_parts_and_their_gradient() -> None:
    assert run(uneven_with_gradient) == [[], []]


def captured_and_compiled(control: Control) -> list[str]:
    device = join(control)
    rank, wrong = control.rank, []
    xs = inputs(torch.bfloat16)
    want = reference.all_to_all_4d(xs, 2, 1)[rank]
    x = xs[rank].to(device)
    fast = torch.compile(lambda t: ops.all_to_all_4d(t, 2, 1), fullgraph=True)
    if not same_bytes(fast(x), want):  # connects, too
        wrong.append("compiled")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.all_to_all_4d(x, 2, 1)
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    if not same_bytes(y, want):
        wrong.append("replayed")
    del graph
    dist.destroy_process_group()
    return wrong


def test_captured_and_compiled() -> None:
    assert run(captured_and_compiled) == [[], []]
