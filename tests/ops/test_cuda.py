"""The ops under the key CUDA, without a GPU: on fakes that move data, and while tracing."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import gpu_fakes
from fastvideo_dist import ops
from fastvideo_dist.ops.fakes import COLLECTIVES
from gpu_fakes import Fakes, on_gpu
from gpu_fakes.ranks import run_gpu_ranks
from harness import run_ranks
from rank_process import Control

WORLD = 2


run = partial(run_gpu_ranks, world_size=WORLD, within=120)


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


Op = Callable[[Tensor], Tensor]


def cases(rank: int) -> dict[str, tuple[Op, Tensor]]:
    """What is called, and this rank's tensor: small whole numbers, whose sums are exact."""
    x = torch.arange(24.0).view(2, 3, 4) + 100 * rank
    strided = x.transpose(0, 2)  # [4, 3, 2]
    narrow = x[:, :, 1:3]
    mine = x[:, : rank + 1]  # 1 and 2 along dimension 1
    return {
        "all_reduce": (ops.all_reduce, x),
        "all_reduce of strides": (lambda t: ops.all_reduce(t, "avg"), strided),
        "reduce": (lambda t: ops.reduce(t, 1), x),
        "reduce by avg": (lambda t: ops.reduce(t, 0, "avg"), strided),
        "broadcast": (lambda t: ops.broadcast(t, 1), strided),
        "all_gather": (lambda t: ops.all_gather(t, 0), x),
        "all_gather along 1": (lambda t: ops.all_gather(t, 1), strided),
        "all_gather along the last": (lambda t: ops.all_gather(t, -1), narrow),
        "all_gather of one index": (lambda t: ops.all_gather(t, 1), x[:1]),
        "all_gather of sizes": (lambda t: ops.all_gather(t, 1, sizes=[1, 2]), mine),
        "all_gather of nothing": (lambda t: ops.all_gather(t, 1), x[:, :0]),
        "reduce_scatter": (lambda t: ops.reduce_scatter(t, 0), strided),
        "reduce_scatter along the last": (lambda t: ops.reduce_scatter(t, 2, "avg"), x),
        "reduce_scatter of sizes": (lambda t: ops.reduce_scatter(t, 1, sizes=[1, 2]), x),
        "shard": (lambda t: ops.shard(t, 2), x),
        "shard of sizes": (lambda t: ops.shard(t, 1, scale_grad=False, sizes=[2, 1]), strided),
    }


def result_and_gradient(op: Op, x: Tensor) -> tuple[Tensor, Tensor]:
    x.requires_grad_()
    y = op(x)
    dy = torch.arange(float(y.numel())).view(y.shape)
    # The engine would ask the driver for its threads; the op is a single node.
    dx = y.grad_fn(on_gpu(dy) if x.is_cuda else dy)  # type: ignore[misc]
    dx = dx[0] if isinstance(dx, tuple) else dx
    return y.detach().cpu(), dx.cpu()


def every_op(control: Control, fakes: Fakes, folder: str) -> list[str]:
    gpu_fakes.become_gpu_rank(fakes, folder)
    control.init()
    wrong = []
    for name, (op, x) in cases(control.rank).items():
        want = result_and_gradient(op, x.clone(memory_format=torch.preserve_format))
        got = result_and_gradient(op, on_gpu(x))
        for what, a, b in zip(["result", "gradient"], want, got, strict=True):
            if not torch.equal(a, b):
                wrong.append(f"{name}: the {what} is {b}, not {a}")
    return wrong


def test_every_op_does_on_a_gpu_what_it_does_on_the_cpu() -> None:
    for wrong in run(every_op):
        assert not wrong, "\n".join(wrong)


def memory_of_temporaries(control: Control, fakes: Fakes, folder: str) -> list[float]:
    gpu_fakes.become_gpu_rank(fakes, folder)
    control.init()
    x = on_gpu(torch.full((1 << 16, 2), control.rank + 1.0)).t()
    # All but the last result, and every contiguous copy, are dropped while they are in use.
    for _ in range(20):
        y = ops.all_gather(ops.all_reduce(x, "max"), 0)
    return [float(y.cpu().min()), float(y.cpu().max())]


def test_temporaries_live_until_the_stream_is_done() -> None:
    assert run(memory_of_temporaries) == [[2.0, 2.0]] * 2


def wrong_devices(control: Control, fakes: Fakes, folder: str) -> list[str]:
    gpu_fakes.become_gpu_rank(fakes, folder)
    control.init()
    x = on_gpu(torch.ones(2))
    ops.all_reduce(x)
    said = []
    calls: list[Callable[[], object]] = [
        lambda: ops.all_reduce(on_gpu(torch.ones(2), 1)),
        lambda: ops.all_reduce(on_gpu(torch.ones(2, dtype=torch.int16))),
        lambda: ops.all_reduce(x, "band"),
    ]
    for call in calls:
        try:
            call()
            said.append("nothing")
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    assert ops.all_reduce(x).cpu().tolist() == [2.0, 2.0], "as good as before"
    return said


def test_wrong_tensors_are_named() -> None:
    wanted = [
        r"ValueError: .*works on cuda:0 but the tensor is on cuda:1",
        r"NotImplementedError: .*NCCL cannot reduce int16",
        r"ValueError: .*float32",
    ]
    for said in run(wrong_devices):
        for words, pattern in zip(said, wanted, strict=True):
            assert re.match(pattern, words), words


def captured(control: Control, fakes: Fakes, folder: str) -> list[str]:
    gpu_fakes.become_gpu_rank(fakes, folder)
    control.init()
    x = on_gpu(torch.ones(2, 2))
    set_capturing = torch.ops.fake_gpu.set_capturing
    said = []
    set_capturing(0, True)
    try:
        ops.all_reduce(x)
    except NotImplementedError as error:
        said.append(str(error))
    set_capturing(0, False)
    ops.all_reduce(x)
    set_capturing(0, True)
    y = ops.all_gather(ops.all_reduce(x), 1)
    set_capturing(0, False)
    return [*said, str(y.cpu().tolist())]


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="torch cannot tell there whether a stream captures"
)
def test_the_first_call_is_not_made_in_a_capture() -> None:
    for words, values in run(captured):
        assert "no call on cuda:0 yet" in words
        assert "before the capture" in words
        assert values == str([[2.0] * 4] * 2)


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
