"""all_to_all_4d by two ranks on one GPU that write into each other's results: CUDA IPC, and waits
on the device. To the bit what the exchange with transposes of one process gives."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

import reference
from fastvideo_dist import ops
from fresh import fresh_ranks
from gpu import test_exchange
from gpu.one_gpu import WORLD, join, run, same_bytes
from rank_process import Control

pytestmark = pytest.mark.timeout(400)

BOUND_S = 7.0  # a dead rank is found within 2 s; the GPU is shared, and an abort takes its turn


def push(control: Control, **kwargs: object) -> torch.device:
    os.environ["FASTVIDEO_DIST_PUSH"] = "1"
    return join(control, **kwargs)


def exchange(control: Control, device: torch.device, seed: int = 0) -> bool:
    """Whether one exchange gave what it should."""
    xs = test_exchange.inputs(torch.bfloat16, seed=seed)
    found = ops.all_to_all_4d(xs[control.rank].to(device), 2, 1)
    return same_bytes(found, reference.all_to_all_4d(xs, 2, 1)[control.rank])


def same_tests(control: Control) -> list[str]:
    os.environ["FASTVIDEO_DIST_PUSH"] = "1"
    wrong = test_exchange.every_layout(control)  # which destroys the group
    join(control, again="second")
    if not exchange(control, torch.device("cuda", 0)):
        wrong.append("after the group was made again")
    wrong.append(ops.exchange_path())
    dist.destroy_process_group()
    return wrong


def test_every_layout() -> None:
    assert run(same_tests) == [["push"], ["push"]]


def uneven_with_gradient(control: Control) -> list[str]:
    os.environ["FASTVIDEO_DIST_PUSH"] = "1"
    return test_exchange.uneven_with_gradient(control)


def test_unequal_parts_and_their_gradient() -> None:
    assert run(uneven_with_gradient) == [[], []]


def memory_that_comes_and_goes(control: Control) -> list[str]:
    """Sizes that torch allocates anew, on two streams, with its cache given back in between."""
    device = push(control)
    wrong = []
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for i in range(12):
        shape = (1, 64 << (i % 4), 4, 256)
        xs = test_exchange.inputs(torch.float32, shape, seed=i)
        want = reference.all_to_all_4d(xs, 2, 1)[control.rank]
        with torch.cuda.stream(streams[i % 2]):
            x = xs[control.rank].to(device)
            y = ops.all_to_all_4d([x, x], 2, 1)[1]
        torch.cuda.synchronize()
        if not same_bytes(y, want) or ops.exchange_path() != "push":
            wrong.append(f"{shape} {ops.exchange_path()}")
        del x, y
        if i % 3 == 2:
            dist.barrier()
            torch.cuda.empty_cache()
    dist.barrier()
    dist.destroy_process_group()
    return wrong


def test_memory_that_comes_and_goes() -> None:
    assert run(memory_that_comes_and_goes) == [[], []]


def captured(control: Control) -> list[str]:
    device = push(control)
    wrong = [] if exchange(control, device) else ["before"]
    xs = test_exchange.inputs(torch.bfloat16)
    x = xs[control.rank].to(device)
    dist.all_reduce(torch.ones(4, device=device))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ops.all_to_all_4d(x, 2, 1)
    wrong.append(ops.exchange_path())
    y.zero_()
    graph.replay()
    torch.cuda.synchronize()
    if not same_bytes(y, reference.all_to_all_4d(xs, 2, 1)[control.rank]):
        wrong.append("replayed")
    del graph
    dist.destroy_process_group()
    return wrong


def test_a_capture_goes_over_nccl() -> None:
    assert run(captured) == [["nccl: the call is captured in a CUDA graph"]] * 2


def expandable(control: Control) -> str:
    torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    device = push(control)
    assert exchange(control, device)
    path = ops.exchange_path()
    dist.barrier()
    dist.destroy_process_group()
    return path


def test_memory_that_cannot_be_shared_goes_over_nccl() -> None:
    for path in run(expandable):
        assert path.startswith("nccl: rank 0: the memory of an output cannot be opened"), path


def until_killed(control: Control) -> tuple[str, float]:
    device = push(control)
    assert exchange(control, device)
    assert ops.exchange_path() == "push"
    x = torch.ones(1, 64, 4, 64, device=device)
    control.reached("met")
    begun = time.monotonic()

    def until_it_is_heard_of() -> None:
        while time.monotonic() < begun + 60:
            ops.all_to_all_4d(x, 2, 1)

    with pytest.raises(dist.DistBackendError) as caught:
        until_it_is_heard_of()
    at = time.monotonic()
    torch.cuda.synchronize()
    assert float(torch.ones(1000, device=device).sum()) == 1000.0
    return str(caught.value), at


def test_a_killed_rank_ends_what_runs() -> None:
    with fresh_ranks(until_killed, WORLD) as ranks:
        ranks.wait_until("met", within=200)
        time.sleep(1.0)
        killed = ranks.kill(1)
        outcome = ranks.outcomes([0], within=100)[0]
    assert outcome.report is not None, str(outcome)
    assert not outcome.raised, str(outcome)
    words, at = outcome.report.value
    assert "rank 1" in words
    assert at - killed < BOUND_S


def a_device_that_is_late(control: Control) -> str:
    device = push(control)
    assert exchange(control, device)
    backend = dist.group.WORLD._get_backend(device)  # type: ignore[union-attr]
    backend.set_timeout(timedelta(seconds=3))
    x = torch.ones(1, 64, 4, 64, device=device)
    torch.cuda.synchronize()
    dist.barrier()
    if control.rank == 1:
        torch.cuda._sleep(20_000_000_000)  # cycles: some ten seconds

    def until_it_is_heard_of() -> None:
        for _ in range(1000):
            ops.all_to_all_4d(x, 2, 1)
            time.sleep(0.02)

    with pytest.raises(dist.DistBackendError) as caught:
        until_it_is_heard_of()
    torch.cuda.synchronize()
    return str(caught.value)


def test_a_device_that_is_late_is_named() -> None:
    for words in run(a_device_that_is_late):
        assert "all_to_all" in words
        assert "3.0 s" in words


def many_groups(control: Control) -> int:
    device = push(control)
    assert exchange(control, device)
    before = 0
    for i in range(12):
        if i == 2:  # what is made once is there
            torch.cuda.synchronize()
            dist.barrier()
            before = torch.cuda.mem_get_info()[0]
        group = dist.new_group()
        x = torch.ones(1, 64, 4, 64, device=device)
        ops.all_to_all_4d(x, 2, 1, group=group)
        assert ops.exchange_path(group) == "push"
        torch.cuda.synchronize()
        dist.barrier()
        dist.destroy_process_group(group)
    torch.cuda.synchronize()
    lost = before - torch.cuda.mem_get_info()[0]
    dist.destroy_process_group()
    return lost


def test_groups_leave_no_memory_behind() -> None:
    # Both ranks' own memory and the others' is of one GPU; torch's cache may grow a little.
    for lost in run(many_groups):
        assert lost < 64 << 20
