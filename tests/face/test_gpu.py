"""`fastvideo_dist.nccl` on CUDA memory, on fakes that move data: tests/gpu_fakes."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

import gpu_fakes
from face.jobs import refused
from face.test_faults import meet
from fastvideo_dist import nccl
from fastvideo_dist.nccl import Communicator
from gpu_fakes import Fakes, on_gpu, synchronize
from gpu_fakes.ranks import gpu_ranks, run_gpu_ranks
from rank_process import Control


def join(control: Control, fakes: Fakes, folder: str, **kwargs: Any) -> Communicator:
    gpu_fakes.become_gpu_rank(fakes, folder)
    return meet(control, **kwargs)


def every_call(control: Control, fakes: Fakes, folder: str, own_stream: bool) -> dict[str, Any]:
    comm = join(control, fakes, folder)
    rank, other = comm.rank, 1 - comm.rank
    handle = torch.ops.fake_gpu.new_stream(0) if own_stream else None
    where: Any = {"stream": SimpleNamespace(__cuda_stream__=lambda: (0, handle))}
    if not own_stream:
        where = {}
    seen: dict[str, torch.Tensor] = {}

    def out(name: str, count: int) -> torch.Tensor:
        seen[name] = torch.full((count,), -1.0)
        return on_gpu(seen[name])

    mine = on_gpu(torch.tensor([rank + 1.0, rank + 10.0]))
    comm.allreduce(mine, out("allreduce", 2), nccl.SUM, **where)
    half = comm.create_pre_mul_sum(0.5, nccl.FLOAT32)
    comm.allreduce(mine, out("premul", 2), half, **where)
    comm.reduce(mine, out("reduce", 2), nccl.MAX, 1, **where)
    comm.broadcast(mine, out("broadcast", 2), 1, **where)
    comm.allgather(mine, out("allgather", 4), **where)
    comm.gather(mine, out("gather", 4), 0, **where)
    comm.scatter(mine, out("scatter", 1), 0, **where)
    comm.reduce_scatter(mine, out("reduce_scatter", 1), nccl.SUM, **where)
    comm.alltoall(mine, out("alltoall", 2), **where)
    with nccl.group():
        comm.send(mine, other, **where)
        comm.send(mine, rank, **where)
        comm.recv(out("own", 2), rank, **where)
        comm.recv(out("message", 2), other, **where)
    if handle is None:
        synchronize()
    else:
        torch.ops.fake_gpu.synchronize_stream(handle)
    found = {name: memory.tolist() for name, memory in seen.items()}
    comm.allreduce(mine, mine, nccl.SUM)  # nobody leaves early
    synchronize()
    comm.destroy()
    return found


@pytest.mark.parametrize("own_stream", [False, True])
def test_every_call(own_stream: bool) -> None:
    results = run_gpu_ranks(every_call, 2, own_stream=own_stream)
    for rank, found in enumerate(results):
        mine, others = [rank + 1.0, rank + 10.0], [2.0 - rank, 11.0 - rank]
        assert found == {
            "allreduce": [3.0, 21.0],
            "premul": [1.5, 10.5],
            "reduce": [[-1.0, -1.0], [2.0, 11.0]][rank],
            "broadcast": [2.0, 11.0],
            "allgather": [1.0, 10.0, 2.0, 11.0],
            "gather": [[1.0, 10.0, 2.0, 11.0], [-1.0] * 4][rank],
            "scatter": [[1.0], [10.0]][rank],
            "reduce_scatter": [[3.0], [21.0]][rank],
            "alltoall": [[1.0, 2.0], [10.0, 11.0]][rank],
            "own": mine,
            "message": others,
        }


def multiplied_integers(
    control: Control, fakes: Fakes, folder: str, dtype: torch.dtype, by: int
) -> list[list[int]]:
    comm = join(control, fakes, folder)
    op = comm.create_pre_mul_sum(by, getattr(nccl, str(dtype).removeprefix("torch.").upper()))
    mine = torch.tensor([comm.rank + 1, 20 - comm.rank], dtype=dtype)
    seen = [torch.zeros(2, dtype=dtype), torch.zeros(2, dtype=dtype), torch.zeros(1, dtype=dtype)]
    comm.allreduce(on_gpu(mine), on_gpu(seen[0]), op)
    comm.reduce(on_gpu(mine), on_gpu(seen[1]), op, 1)
    comm.reduce_scatter(on_gpu(mine), on_gpu(seen[2]), op)
    synchronize()
    comm.allreduce(on_gpu(mine), on_gpu(mine), nccl.SUM)  # nobody leaves early
    synchronize()
    comm.destroy()
    return [x.tolist() for x in seen]


@pytest.mark.parametrize(
    ("dtype", "by"), [(torch.int32, -3), (torch.uint8, 2), (torch.int64, 2**55 + 1)]
)
def test_premultiplied_sums_of_integers(dtype: torch.dtype, by: int) -> None:
    results = run_gpu_ranks(multiplied_integers, 2, dtype=dtype, by=by)
    wanted = [3 * by, 39 * by]  # 1 + 2 and 20 + 19
    for rank, found in enumerate(results):
        assert found == [wanted, [[0, 0], wanted][rank], [wanted[rank]]]


def bad_calls(control: Control, fakes: Fakes, folder: str) -> None:
    comm = join(control, fakes, folder)
    memory = torch.ones(2)
    there = on_gpu(memory)
    comm.allreduce(there, there, nccl.SUM)
    words = "works on cuda:0 but the tensor is on cuda:1"
    elsewhere = on_gpu(torch.ones(2), 1)
    refused(lambda: comm.allreduce(elsewhere, elsewhere, nccl.SUM), words)
    refused(lambda: comm.send(elsewhere, 1 - comm.rank), words)
    refused(lambda: comm.allreduce(there, elsewhere, nccl.SUM), "on device cuda:0, recvbuf on")
    refused(
        lambda: comm.allreduce(there, there, nccl.SUM, stream=SimpleNamespace(device="cuda:1")),
        "the stream is of device cuda:1, buffers are on cuda:0",
    )
    comm.allreduce(there, there, nccl.SUM)  # as good as before
    synchronize()
    assert memory.tolist() == [4.0, 4.0]
    comm.destroy()


def test_wrong_arguments() -> None:
    run_gpu_ranks(bad_calls, 2)


def told_the_allocator(control: Control, fakes: Fakes, folder: str) -> None:
    """Memory may be dropped when a call on another stream than torch's has returned."""
    comm = join(control, fakes, folder)
    there = on_gpu(torch.ones(2))
    uses = torch.ops.fake_gpu.uses()
    comm.allreduce(there, there, nccl.SUM)
    assert torch.ops.fake_gpu.uses() == uses
    stream = torch.ops.fake_gpu.new_stream(0)
    comm.allreduce(there, there, nccl.SUM, stream=stream)
    assert torch.ops.fake_gpu.uses() > uses
    torch.ops.fake_gpu.synchronize_stream(stream)
    comm.destroy()


def test_memory_used_on_another_stream() -> None:
    run_gpu_ranks(told_the_allocator, 2)


def given_up(control: Control, fakes: Fakes, folder: str, how: str) -> None:
    comm = join(control, fakes, folder)
    if control.rank == 1:
        control.wait_for("go")
        return
    there = on_gpu(torch.ones(2))
    threading.Timer(0.3, comm.abort if how == "abort" else comm.destroy).start()
    began = time.monotonic()
    with pytest.raises(dist.DistBackendError, match="given up"):
        comm.allreduce(there, there, nccl.SUM)  # rank 1 does not come
    assert time.monotonic() - began < 5
    control.reached("ended")


@pytest.mark.parametrize("how", ["abort", "destroy"])
def test_connecting_is_given_up_from_another_thread(how: str) -> None:
    with gpu_ranks(given_up, 2, how=how) as ranks:
        ranks.wait_until("ended", [0])
        ranks.tell(1, "go")
        for outcome in ranks.outcomes(within=20):
            assert not outcome.raised, str(outcome)
