"""CUDA tensors through c10d, on fakes that move data: tests/gpu_fakes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import gpu_fakes
from fresh import Outcome
from gpu_fakes import Fakes, on_gpu, synchronize
from gpu_fakes.ranks import gpu_ranks, run_gpu_ranks
from rank_process import Control

WORLD = 2


run = partial(run_gpu_ranks, world_size=WORLD)


def join(control: Control, fakes: Fakes, folder: str, **kwargs: Any) -> None:
    gpu_fakes.become_gpu_rank(fakes, folder)
    control.init(**kwargs)


def tensor(values: list[float], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The memory, and the tensor on the GPU over it."""
    memory = torch.tensor(values).to(dtype)
    return memory, on_gpu(memory)


def every_collective(control: Control, fakes: Fakes, folder: str) -> dict[str, list[float]]:
    join(control, fakes, folder)
    rank, other = control.rank, 1 - control.rank
    seen: dict[str, Tensor] = {}

    def result(name: str, values: list[float]) -> Tensor:
        seen[name], there = tensor(values)
        return there

    mine = [rank + 1.0, rank + 10.0]
    dist.all_reduce(result("all_reduce", mine))
    dist.all_reduce(result("avg", mine), op=dist.ReduceOp.AVG)
    dist.all_reduce(result("premul", mine), op=dist._make_nccl_premul_sum(0.5))
    dist.broadcast(result("broadcast", mine), src=1)
    dist.reduce(result("reduce", mine), dst=0)
    x = tensor(mine)[1]
    dist.all_gather_into_tensor(result("all_gather_into_tensor", [0.0] * 4), x)
    dist.all_gather([result("all_gather 0", [0.0] * 2), result("all_gather 1", [0.0] * 2)], x)
    dist.reduce_scatter_tensor(result("reduce_scatter_tensor", [0.0]), x)
    parts = [result(f"gather {i}", [0.0] * 2) for i in range(2)] if rank == 0 else None
    dist.gather(x, parts, dst=0)
    from_1 = [tensor([5.0])[1], tensor([6.0])[1]] if rank == 1 else None
    dist.scatter(result("scatter", [0.0]), from_1, src=1)
    dist.all_to_all_single(result("all_to_all_single", [0.0] * 2), x)
    splits = [1, 2] if rank == 0 else [2, 1]
    uneven = tensor([rank * 10.0 + i for i in range(3)])[1]
    dist.all_to_all_single(result("uneven", [0.0] * 3), uneven, splits, splits)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, x, other),
            dist.P2POp(dist.irecv, result("batch", [0.0] * 2), other),
        ]
    )
    for work in works:
        work.wait()
    if rank == 0:
        dist.send(x, 1)
    else:
        dist.recv(result("recv", [0.0] * 2), 0)
    dist.barrier()
    dist.destroy_process_group()
    synchronize()
    return {name: memory.tolist() for name, memory in seen.items()}


def test_every_collective() -> None:
    zero, one = run(every_collective)
    both = {
        "all_reduce": [3.0, 21.0],
        "avg": [1.5, 10.5],
        "premul": [1.5, 10.5],
        "broadcast": [2.0, 11.0],
        "all_gather_into_tensor": [1.0, 10.0, 2.0, 11.0],
        "all_gather 0": [1.0, 10.0],
        "all_gather 1": [2.0, 11.0],
    }
    for rank, found in enumerate([zero, one]):
        wanted = dict(both)
        wanted["reduce_scatter_tensor"] = [[3.0], [21.0]][rank]
        wanted["scatter"] = [[5.0], [6.0]][rank]
        wanted["all_to_all_single"] = [[1.0, 2.0], [10.0, 11.0]][rank]
        wanted["uneven"] = [[0.0, 10.0, 11.0], [1.0, 2.0, 12.0]][rank]
        wanted["batch"] = [[2.0, 11.0], [1.0, 10.0]][rank]
        if rank == 0:
            wanted |= {"reduce": [3.0, 21.0], "gather 0": [1.0, 10.0], "gather 1": [2.0, 11.0]}
        else:
            wanted["recv"] = [1.0, 10.0]
            found.pop("reduce")  # undefined there
        assert found == wanted


def every_dtype(control: Control, fakes: Fakes, folder: str) -> list[str]:
    join(control, fakes, folder)
    moved = [
        *[torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64],
        *[torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16],
        *[torch.float32, torch.float64, torch.complex64, torch.complex128],
        *[torch.float8_e4m3fn, torch.float8_e5m2],
    ]
    wrong = []
    for dtype in moved:
        _memory, there = tensor([1.0, 0.0, control.rank], dtype)
        out = torch.zeros(6).to(dtype)
        dist.all_gather_into_tensor(on_gpu(out), there)
        synchronize()
        want = torch.cat(
            [torch.tensor([1.0, 0.0, rank]).to(dtype).view(torch.uint8) for rank in (0, 1)]
        )
        if not torch.equal(out.view(torch.uint8), want):
            wrong.append(f"{dtype}: {out}")
    return wrong


def test_every_dtype_is_moved() -> None:
    assert run(every_dtype) == [[], []]


def asynchronous(control: Control, fakes: Fakes, folder: str) -> dict[str, Any]:
    join(control, fakes, folder)
    memory, there = tensor([1.0])
    dist.all_reduce(there)  # connects
    synchronize()
    begun = time.monotonic()
    if control.rank == 1:
        time.sleep(0.5)
    work = dist.all_reduce(there, async_op=True)
    assert work is not None
    facts: dict[str, Any] = {"done at once": work.is_completed()}
    uses = torch.ops.fake_gpu.uses()
    work.wait()
    facts["wait took"] = time.monotonic() - begun
    facts["told the allocator"] = torch.ops.fake_gpu.uses() > uses
    synchronize()  # of the current stream, which now waits for it
    facts["value"] = memory.tolist()
    facts["done"] = work.is_completed()
    future = dist.all_reduce(there, async_op=True).get_future()
    facts["future"] = future.wait()[0].data_ptr() == memory.data_ptr()
    synchronize()
    facts["after the future"] = memory.tolist()
    dropped = dist.all_reduce(there, async_op=True)
    uses = torch.ops.fake_gpu.uses()
    del dropped
    facts["a dropped work tells too"] = torch.ops.fake_gpu.uses() > uses
    dist.barrier()
    return facts


def test_an_asynchronous_call_orders_streams() -> None:
    for rank, facts in enumerate(run(asynchronous)):
        assert facts["value"] == [4.0]
        assert facts["done"]
        assert facts["future"]
        assert facts["told the allocator"]
        assert facts["after the future"] == [8.0]
        assert facts["a dropped work tells too"]
        if rank == 0:
            assert not facts["done at once"]
            assert facts["wait took"] < 0.4, "the host waited for the other rank"


def bad_calls(control: Control, fakes: Fakes, folder: str) -> list[tuple[str, str]]:
    join(control, fakes, folder)
    memory, there = tensor([1.0, 2.0])
    dist.all_reduce(there)
    backend = dist.group.WORLD._get_backend(torch.device("cuda"))  # type: ignore[union-attr]
    said = []
    calls: list[Callable[[], object]] = [
        lambda: dist.all_reduce(on_gpu(torch.ones(2), 1)),
        lambda: dist.all_to_all_single(on_gpu(torch.ones(2), 1), there),
        lambda: backend._allgather_base(on_gpu(torch.ones(4)), torch.ones(2)),
        lambda: dist.all_reduce(there, op=dist.ReduceOp.BAND),
        lambda: dist.all_reduce(on_gpu(torch.ones(2, dtype=torch.int16))),
        lambda: backend.recv_anysource([there], 0),
        lambda: dist.recv(on_gpu(torch.ones(2, 2)).t(), 1 - control.rank),
    ]
    for call in calls:
        try:
            call()
            said.append(("nothing", ""))
        except Exception as error:
            said.append((type(error).__name__, str(error)))
    dist.all_reduce(there)  # as good as before
    synchronize()
    assert memory.tolist() == [4.0, 8.0]
    return said


def test_wrong_arguments_are_named() -> None:
    wanted = [
        ("ValueError", "works on cuda:0 but the tensor is on cuda:1"),
        ("ValueError", "another tensor of this call is on cuda:"),
        ("ValueError", "all must be on one device"),
        ("ValueError", "BAND has no meaning for float32"),
        ("NotImplementedError", "NCCL cannot reduce int16"),
        ("NotImplementedError", "NCCL receives from a rank that is named"),
        ("ValueError", "receive into a contiguous one"),
    ]
    for said in run(bad_calls):
        for (kind, words), (wanted_kind, part) in zip(said, wanted, strict=True):
            assert kind == wanted_kind, words
            assert part in words


def no_library(control: Control, fakes: Fakes, folder: str) -> tuple[str, str]:
    missing = f"{folder}/libnccl.so.2" if control.rank == 1 else str(fakes.library)
    gpu_fakes.become_gpu_rank(fakes, folder)
    os.environ["FASTVIDEO_DIST_NCCL_LIBRARY"] = missing
    control.init()
    try:
        dist.all_reduce(tensor([1.0])[1])
    except Exception as error:
        said = (type(error).__name__, str(error))
    else:
        said = ("nothing", "")
    x = torch.ones(1)
    dist.all_reduce(x)
    assert x.item() == 2.0, "the CPU's side is as good as before"
    return said


def test_a_rank_without_nccl_is_told_to_all() -> None:
    for kind, words in run(no_library):
        assert kind == "NotImplementedError"
        assert "no usable NCCL library" in words
        assert "No such file" in words
        assert "FASTVIDEO_DIST_NCCL_LIBRARY" in words


def until_killed(control: Control, fakes: Fakes, folder: str) -> str:
    join(control, fakes, folder)
    there = tensor([1.0])[1]
    dist.all_reduce(there)
    synchronize()
    control.reached("connected")
    if control.rank == 1:
        control.wait_for("never")
    work = dist.all_reduce(there, async_op=True)  # rank 1 never comes
    control.reached("waiting")
    end = time.monotonic() + 10
    while work.is_success() and time.monotonic() < end:
        time.sleep(0.01)
    try:
        work.wait()
    except dist.DistBackendError as error:
        return str(error)
    return "nothing"


def test_a_killed_rank_ends_what_runs() -> None:
    with gpu_ranks(until_killed, WORLD) as ranks:
        ranks.wait_until("connected")
        ranks.wait_until("waiting", [0])
        at = ranks.kill(1)
        outcome: Outcome = ranks.outcomes([0])[0]
    assert outcome.report is not None, str(outcome)
    assert outcome.report.at - at < 3.0
    assert "rank 1" in str(outcome.report.value), str(outcome)
    assert outcome.exitcode == 0, "the process survives"


def exit_without_destroy(control: Control, fakes: Fakes, folder: str) -> list[float]:
    join(control, fakes, folder)
    memory, there = tensor([1.0])
    dist.all_reduce(there)
    synchronize()
    return memory.tolist()


def test_a_process_may_end_without_destroying() -> None:
    assert run(exit_without_destroy) == [[2.0], [2.0]]
