"""What the ops do under the key CUDA, without a GPU: tensors that only claim to be on one."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastvideo_dist.ops.fakes import COLLECTIVES
from harness import run_ranks

WORLD = 2
NOT_YET = r'fastvideo: {} on group "0", rank {}: {} is on cuda:0; the ops have no CUDA side yet'


def on_cuda(*shape: int) -> Tensor:
    with FakeTensorMode():
        return torch.empty(shape, device="cuda:0")


def arguments(op: str, x: Tensor, rank: int) -> tuple[object, ...]:
    group = ("0", WORLD)
    return {
        "all_gather": (x, 0, None, *group, rank),
        "all_reduce": (x, "sum", *group),
        "all_to_all_4d": (x, 2, 1, *group),
        "all_to_all_4d_list": ([torch.ones(1, 2, 2, 2), x], 2, 1, None, None, *group, rank),
        "broadcast": (x, 0, *group),
        "reduce": (x, 0, "sum", *group),
        "reduce_scatter": (x, 0, "sum", None, *group, rank),
    }[op]


@pytest.mark.parametrize("key", ["CPU", "CUDA", "Autograd"])
@pytest.mark.parametrize("op", COLLECTIVES)
def test_every_collective_has_a_kernel(op: str, key: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastvideo_dist::{op}", key)


def test_shard_needs_no_transport() -> None:
    """One kernel for all devices, below one for gradients."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has("fastvideo_dist::shard", "CompositeExplicitAutograd")
    assert has("fastvideo_dist::shard", "Autograd")


def check_refused(rank: int, world_size: int) -> list[str]:
    messages = []
    x = on_cuda(2, 2, 2, 2)
    for op in COLLECTIVES:
        overload = getattr(torch.ops.fastvideo_dist, op).default
        try:
            overload._op_dk(torch._C.DispatchKey.CUDA, *arguments(op, x, rank))
            messages.append(f"{op}: no exception")
        except NotImplementedError as error:
            messages.append(str(error))
    return messages


def test_a_cuda_tensor_is_refused_by_every_collective() -> None:
    for rank, messages in enumerate(run_ranks(check_refused, WORLD)):
        for op, message in zip(COLLECTIVES, messages, strict=True):
            what = r"x\[1\]" if op == "all_to_all_4d_list" else "x"
            shown = op.removesuffix("_list")
            assert re.match(NOT_YET.format(shown, rank, what), message), message


def check_shapes(rank: int, world_size: int) -> None:
    """Tracing for a GPU needs none."""
    with FakeTensorMode():
        x = torch.empty(2, 2, 2, 2, device="cuda:0", requires_grad=True)
        for op in COLLECTIVES:
            values = list(arguments(op, x, rank))
            if op == "all_to_all_4d_list":
                values[0] = [x, x]
            y = getattr(torch.ops.fastvideo_dist, op)(*values)
            for result in y if isinstance(y, list) else [y]:
                assert result.device == torch.device("cuda:0")
                assert result.requires_grad


def test_shapes_are_known_for_cuda_tensors() -> None:
    run_ranks(check_shapes, WORLD)
