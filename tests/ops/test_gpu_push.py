"""all_to_all_4d of CUDA tensors by ranks that write into each other's results, on fakes whose
memory other processes can open. What holds for the way over NCCL holds here, to the bit."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

import gpu_fakes
from c10d import cases
from fastvideo_dist import ops
from gpu_fakes import Fakes, moved, on_gpu
from gpu_fakes.ranks import gpu_ranks, run_gpu_ranks
from ops import test_gpu_exchange as over_nccl
from rank_process import Control

WORLDS = pytest.mark.parametrize("world_size", [2, 3])

run = partial(run_gpu_ranks, within=90)


def join(
    control: Control, fakes: Fakes, folder: str, push: bool = True, check: str = "beside"
) -> None:
    gpu_fakes.become_gpu_rank(fakes, folder, check, push)
    control.init()


def pushing(control: Control, fakes: Fakes, folder: str, what: str, **kwargs: Any) -> str:
    """One of the tests of the other way; which way it took."""
    os.environ["FASTVIDEO_DIST_PUSH"] = "1"
    getattr(over_nccl, what)(control, fakes, folder, **kwargs)
    return ops.exchange_path()


@WORLDS
@pytest.mark.parametrize("what", ["every_layout", "one_tensor", "gradients"])
def test_as_over_nccl(world_size: int, what: str) -> None:
    assert run(pushing, world_size, what=what) == ["push"] * world_size


@WORLDS
@pytest.mark.parametrize("check", ["beside", "before"])
def test_unequal_parts_of_four_tensors(world_size: int, check: str) -> None:
    paths = run(pushing, world_size, what="qkv_and_gate", check=check)
    assert paths == ["push"] * world_size


def test_a_kernel_that_fails_ends_the_group_on_all_ranks() -> None:
    paths = run(pushing, 2, what="failing_launch")
    assert paths == ["push", "push"]


def bytes_moved(control: Control, fakes: Fakes, folder: str) -> list[tuple[float, int, int]]:
    """Of each exchange: bytes of device memory read or written for each byte of the tensors,
    kernels that copy, and waits."""
    join(control, fakes, folder)
    world = control.world_size
    rows = []
    x = cases.make(control.rank, (2, 6, 2 * world, 16), torch.bfloat16)
    y = cases.make(control.rank, (2, 6 * world, 2, 16), torch.bfloat16)
    strided = over_nccl.layouts(x)["heads first"]
    for xs, scatter_dim, gather_dim in [
        ([x] * 4, 2, 1),
        ([strided] * 4, 2, 1),
        ([y], 1, 2),
        ([y] * 4, 1, 2),
    ]:
        there = [on_gpu(t) for t in xs]
        ops.all_to_all_4d(there, scatter_dim, gather_dim)[0].cpu()
        bytes_before, launches_before = moved(fakes)
        waits_before = gpu_fakes.rank_waits(fakes)
        results = ops.all_to_all_4d(there, scatter_dim, gather_dim)
        results[0].cpu()
        bytes_after, launches_after = moved(fakes)
        size = sum(t.numel() * t.element_size() for t in xs)
        waits = gpu_fakes.rank_waits(fakes) - waits_before
        rows.append(((bytes_after - bytes_before) / size, launches_after - launches_before, waits))
    return rows


@WORLDS
def test_memory_is_touched_twice(world_size: int) -> None:
    for rows in run(bytes_moved, world_size):
        assert rows == [(2.0, 1, 2)] * 4


def settings_differ(control: Control, fakes: Fakes, folder: str) -> str:
    join(control, fakes, folder, push=control.rank != 1)
    assert ops.exchange_path() == ""
    x = cases.make(control.rank, (1, 4, 2 * control.world_size, 8), torch.float32)
    over_nccl.same_as_on_cpu([x], "over NCCL")
    return ops.exchange_path()


def test_ranks_that_differ_fall_back() -> None:
    assert run(settings_differ, 3) == ["nccl: rank 1: FASTVIDEO_DIST_PUSH is 0"] * 3


def not_open(control: Control, fakes: Fakes, folder: str) -> tuple[str, str]:
    """One rank cannot open the memory of the others, which all hear."""
    join(control, fakes, folder)
    x = cases.make(control.rank, (1, 4, 2 * control.world_size, 8), torch.float32)
    over_nccl.same_as_on_cpu([x], "pushed")
    path = ops.exchange_path()
    gpu_fakes.refuse_to_open_memory(fakes, control.rank == 1)
    over_nccl.same_as_on_cpu([x], "over NCCL")  # whose results are new memory
    return path, ops.exchange_path()


def test_memory_that_one_rank_cannot_open() -> None:
    for path, then in run(not_open, 3):
        assert path == "push"
        assert then.startswith("nccl: rank 1: the memory of rank 2 cannot be opened on GPU 0")


def captured(control: Control, fakes: Fakes, folder: str) -> list[str]:
    join(control, fakes, folder)
    x = cases.make(control.rank, (1, 4, 2 * control.world_size, 8), torch.float32)
    wanted = ops.all_to_all_4d(x)
    there = on_gpu(x)
    paths = []
    for capturing in (False, True, False):
        torch.ops.fake_gpu.set_capturing(0, capturing)
        y = ops.all_to_all_4d(there)
        torch.ops.fake_gpu.set_capturing(0, False)
        cases.same_bits(y.cpu(), wanted, capturing)
        paths.append(ops.exchange_path())
    return paths


def test_a_capture_goes_over_nccl() -> None:
    for paths in run(captured, 2):
        assert paths == ["push", "nccl: the call is captured in a CUDA graph", "push"]


def many_groups(control: Control, fakes: Fakes, folder: str) -> list[int]:
    """Allocations that are open after each group, and descriptors at the end of each."""
    join(control, fakes, folder)
    x = on_gpu(cases.make(control.rank, (1, 4, 2 * control.world_size, 8), torch.float32))
    counts = []
    for _ in range(5):
        group = dist.new_group()
        for _ in range(5):
            ops.all_to_all_4d([x, x], group=group)[1].cpu()
        assert ops.exchange_path(group) == "push"
        torch.distributed.destroy_process_group(group)
        counts.append(gpu_fakes.open_memory(fakes))
    return counts


def test_groups_leave_nothing_open() -> None:
    assert run(many_groups, 2) == [[0] * 5] * 2


def until_it_dies(control: Control, fakes: Fakes, folder: str) -> tuple[str, float]:
    join(control, fakes, folder)
    x = on_gpu(torch.ones(1, 4, 2 * control.world_size, 8))
    ops.all_to_all_4d(x).cpu()
    control.reached("met")
    begin = time.monotonic()

    def until_it_is_heard_of() -> None:
        while time.monotonic() < begin + 60:
            ops.all_to_all_4d(x).cpu()

    with pytest.raises(dist.DistBackendError) as caught:
        until_it_is_heard_of()
    return str(caught.value), time.monotonic()


def test_a_killed_rank_is_heard_of_soon() -> None:
    with gpu_ranks(until_it_dies, 2) as ranks:
        ranks.wait_until("met")
        time.sleep(0.5)  # in the middle of many
        at = ranks.kill(1)
        outcome = ranks.outcomes([0])[0]
    assert outcome.report is not None, str(outcome)
    assert not outcome.raised, str(outcome)
    words, heard = outcome.report.value
    assert "rank 1" in words
    assert heard - at < 3.0
