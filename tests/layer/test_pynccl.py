"""PyNcclCommunicator and CudaCommunicator on GPUs that are fakes: tests/gpu_fakes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ReduceOp

import gpu_fakes
from fastvideo_dist.device_communicators.cuda_communicator import CudaCommunicator
from fastvideo_dist.device_communicators.pynccl import PyNcclCommunicator
from fastvideo_dist.graph_capture import connect_gpus
from fastvideo_dist.stateless_process_group import StatelessProcessGroup
from gpu_fakes import Fakes, on_gpu
from gpu_fakes.ranks import run_gpu_ranks
from rank_process import Control

WORLD = 2


run = partial(run_gpu_ranks, world_size=WORLD, within=120)


def world(control: Control, fakes: Fakes, folder: str) -> Any:
    gpu_fakes.become_gpu_rank(fakes, folder)
    gpu_fakes.pretend_cuda()
    control.init()
    return dist.group.WORLD


def all_calls(comm: PyNcclCommunicator, rank: int) -> dict[str, list[float]]:
    other = 1 - rank
    x = on_gpu(torch.tensor([1.0, 2.0]) + 10 * rank)
    seen = {name: on_gpu(torch.zeros(4)) for name in ("all_gather", "broadcast", "recv")}
    seen["all_reduce"] = comm.all_reduce(x)
    seen["max"] = comm.all_reduce(x, ReduceOp.MAX)
    comm.all_gather(seen["all_gather"], x)
    seen["reduce_scatter"] = on_gpu(torch.zeros(1))
    comm.reduce_scatter(seen["reduce_scatter"], x, ReduceOp.AVG)
    if rank == 1:
        seen["broadcast"].fill_(7.0)
    comm.broadcast(seen["broadcast"], 1)
    comm.group_start()  # both send first
    comm.send(x, other)
    comm.recv(seen["recv"][:2], other)
    comm.group_end()
    if rank == 0:
        comm.send(x, 1)
    else:
        comm.recv(seen["recv"][2:], 0)
    return {name: tensor.cpu().tolist() for name, tensor in seen.items()}


def check_calls(found: list[dict[str, list[float]]]) -> None:
    for rank, seen in enumerate(found):
        mine, theirs = ([1.0, 2.0], [11.0, 12.0])[:: 1 if rank == 0 else -1]
        assert seen == {
            "all_reduce": [12.0, 14.0],
            "max": [11.0, 12.0],
            "all_gather": [1.0, 2.0, 11.0, 12.0],
            "reduce_scatter": [[6.0], [7.0]][rank],
            "broadcast": [7.0] * 4,
            "recv": [*theirs, *([0.0, 0.0] if rank == 0 else theirs)],
        }, mine


def over_c10d(control: Control, fakes: Fakes, folder: str) -> dict[str, list[float]]:
    comm = PyNcclCommunicator(world(control, fakes, folder), control.rank * 0)
    assert (comm.rank, comm.world_size, comm.available, comm.disabled) == (
        control.rank,
        WORLD,
        True,
        False,
    )
    seen = all_calls(comm, control.rank)
    comm.destroy()
    comm.destroy()
    with pytest.raises(RuntimeError, match=r"all_reduce on cuda:0, rank .* was destroyed"):
        comm.all_reduce(on_gpu(torch.ones(1)))
    return seen


def test_every_call_over_a_c10d_group() -> None:
    check_calls(run(over_c10d))


def stateless(control: Control, fakes: Fakes, folder: str, port: int) -> dict[str, list[float]]:
    gpu_fakes.become_gpu_rank(fakes, folder)
    gpu_fakes.pretend_cuda()
    group = StatelessProcessGroup.create("127.0.0.1", port, control.rank, WORLD)
    comm = PyNcclCommunicator(group, "cuda:0", library_path=str(fakes.library))
    seen = all_calls(comm, control.rank)
    with pytest.raises(ValueError, match=r"/nowhere/libnccl.so was asked for, but this process"):
        PyNcclCommunicator(group, "cuda:0", library_path="/nowhere/libnccl.so")
    comm.destroy()
    return seen


def test_every_call_over_a_stateless_group() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    check_calls(run(stateless, port=port))


def gradient(y: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """Backward without the engine, which would ask the driver for its threads."""
    node: Any = y.grad_fn
    found = node(dy) if callable(node) else node.apply(dy)
    return next(one for one in found if one is not None) if isinstance(found, tuple) else found


def gradients(control: Control, fakes: Fakes, folder: str) -> list[Any]:
    group = world(control, fakes, folder)
    own = PyNcclCommunicator(group, 0)
    layer = CudaCommunicator(group, torch.device("cuda", 0), group, "tp:0")
    seen = []
    for comm in (own, layer):
        x = on_gpu(torch.full((2,), control.rank + 1.0)).requires_grad_()
        y = comm.all_reduce(x)  # type: ignore[attr-defined]
        dy = on_gpu(torch.full((2,), control.rank + 5.0))  # there until the stream has read it
        dx = gradient(y, dy)
        seen.append((y.detach().cpu().tolist(), dx.cpu().tolist()))
    largest = own.all_reduce(on_gpu(torch.ones(1)).requires_grad_(), ReduceOp.MAX)
    with pytest.raises(NotImplementedError, match="only SUM and AVG have"):
        gradient(largest, on_gpu(torch.ones(1)))
    own.destroy()
    layer.destroy()
    return seen


def test_all_reduce_is_differentiable() -> None:
    for seen in run(gradients):
        assert seen == [([3.0, 3.0], [11.0, 11.0])] * 2


def cuda_communicator(control: Control, fakes: Fakes, folder: str) -> list[Any]:
    group = world(control, fakes, folder)
    comm = CudaCommunicator(group, torch.device("cuda", 0), group, "tp:0")
    x = on_gpu(torch.arange(4.0).view(2, 2).t() + control.rank)
    if control.rank == 0:
        comm.send(x)
    received = comm.recv(x.shape, x.dtype)
    if control.rank == 1:
        comm.send(x)
    gathered = comm.all_gather(x, 1)
    made = comm.pynccl_comm
    assert made is comm.pynccl_comm
    assert made is not None
    summed = made.all_reduce(x.contiguous())
    comm.destroy()
    assert received.device == x.device
    return [t.cpu().tolist() for t in (received, gathered, summed)]


def test_the_cuda_communicator() -> None:
    mine = [torch.arange(4.0).view(2, 2).t() + rank for rank in range(WORLD)]
    for rank, seen in enumerate(run(cuda_communicator)):
        want = [mine[1 - rank], torch.cat(mine, 1), mine[0] + mine[1]]
        assert seen == [t.tolist() for t in want]


def wrong_calls(control: Control, fakes: Fakes, folder: str) -> list[str]:
    comm = PyNcclCommunicator(world(control, fakes, folder), 0)
    x = on_gpu(torch.ones(2, 2))
    calls: list[Callable[[], object]] = [
        lambda: comm.all_reduce(x.t()[:1]),
        lambda: comm.all_reduce(torch.ones(2)),
        lambda: comm.all_reduce(on_gpu(torch.ones(2), 1)),
        lambda: comm.all_reduce(on_gpu(torch.ones(2, dtype=torch.int16))),
        lambda: comm.all_reduce(x, ReduceOp.BAND),
        lambda: comm.all_gather(x, x),
        lambda: comm.reduce_scatter(x, x),
        lambda: comm.all_gather(on_gpu(torch.ones(8, dtype=torch.int32)), x),
        lambda: comm.broadcast(x, 2),
        lambda: comm.send(x, control.rank),
    ]
    said = []
    for call in calls:
        try:
            call()
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    assert comm.all_reduce(x).cpu().tolist() == [[2.0, 2.0]] * 2, "as good as before"
    return said


def test_wrong_arguments_are_named() -> None:
    words = [
        "is not contiguous",
        "in_tensor is on cpu",
        "in_tensor is on cuda:1",
        "which NCCL does not know",
        "is none of SUM",
        "must be 2 times as many",
        "must be 2 times as many",
        "Dtype mismatch",
        "root 2 is no rank",
        "this rank itself",
    ]
    for said in run(wrong_calls):
        for message, part in zip(said, words, strict=True):
            assert part in message, message


def captured(control: Control, fakes: Fakes, folder: str) -> list[float]:
    """A communicator is connected when it is made: the first call may be in a capture."""
    group = world(control, fakes, folder)
    comm = PyNcclCommunicator(group, 0)
    x = on_gpu(torch.full((2,), control.rank + 1.0))
    connect_gpus(group, torch.device("cuda", 0))
    torch.ops.fake_gpu.set_capturing(0, True)
    y = comm.all_reduce(x)
    dist.all_reduce(x)
    torch.ops.fake_gpu.set_capturing(0, False)
    comm.destroy()
    return [*y.cpu().tolist(), *x.cpu().tolist()]


def test_calls_may_be_captured() -> None:
    assert run(captured) == [[3.0] * 4] * 2


def states(control: Control, fakes: Fakes, folder: str) -> None:
    group = world(control, fakes, folder)
    x = on_gpu(torch.ones(1))
    comm = PyNcclCommunicator(group, 0)
    with comm.change_state(enable=False):
        assert comm.disabled
        assert comm.all_reduce(x) is None
        comm.broadcast(x, 0)  # nobody else takes part, and nothing happens
        with comm.change_state():
            assert not comm.disabled
    assert not comm.disabled
    alone = [dist.new_group([rank]) for rank in range(WORLD)][control.rank]
    single = PyNcclCommunicator(alone, 0)
    assert (single.available, single.disabled) == (False, True)
    assert single.all_reduce(x) is None
    with pytest.raises(ValueError, match="nothing to enable"), single.change_state(enable=True):
        pass
    single.destroy()
    comm.destroy()


def test_the_disabled_state() -> None:
    run(states)


def without_nccl(control: Control, fakes: Fakes, folder: str) -> str:
    group = world(control, fakes, folder)
    path = f"{folder}/libnccl.so.2" if control.rank == 1 else None
    with pytest.raises(NotImplementedError) as caught:
        PyNcclCommunicator(group, 0, path)
    return str(caught.value)


def test_a_rank_without_nccl_is_told_to_all() -> None:
    zero, one = run(without_nccl)
    assert "rank 1 refuses" in zero
    for words in (zero, one):
        assert "no usable NCCL library" in words
