"""Ranks that leave: by returning, raising, exit or destroy; and what destroy itself promises."""

from __future__ import annotations

import os
import sys
import time

import pytest
import torch
import torch.distributed as dist

from faults import expect
from fresh import fresh_ranks
from harness import run_ranks
from rank_process import Control

LEAVER = 1


def leave(control: Control, way: str) -> None:
    control.init(timeout_s=60)
    dist.all_reduce(torch.ones(4))
    if control.rank != LEAVER:
        dist.all_reduce(torch.ones(5))
        raise AssertionError("the call without its peer came through")
    control.reached("leaving")
    if way == "destroy":
        dist.destroy_process_group()
    elif way == "exception":
        raise ArithmeticError("the rank's own mistake")
    elif way == "_exit":
        os._exit(3)
    elif way == "sys.exit":
        sys.exit(0)
    # "return": the interpreter ends with the group alive


@pytest.mark.parametrize("way", ["return", "destroy", "exception", "_exit", "sys.exit"])
def test_the_others_raise(way: str) -> None:
    with fresh_ranks(leave, 3, way=way) as ranks:
        (left,) = ranks.wait_until("leaving", [LEAVER])
        *others, leaver = ranks.outcomes([0, 2, LEAVER])
        for outcome in others:
            pattern = rf"all_reduce\(SUM, float32 x 5\) seq 2.*rank {LEAVER} .*pid"
            expect.broken(outcome, pattern, left["at"])
        assert leaver.exitcode == (3 if way == "_exit" else 0), leaver


def keep_waiting_work(control: Control) -> float:
    control.init(timeout_s=60)
    dist.barrier()
    if control.rank == 1:
        control.wait_for("join in")
        dist.all_reduce(torch.ones(4))
        raise AssertionError("rank 0 has left: this may not come through")
    work = dist.all_reduce(torch.ones(4), async_op=True)
    received = dist.irecv(torch.empty(4), 1)
    begin = time.monotonic()
    dist.destroy_process_group()
    seconds = time.monotonic() - begin
    for pending in (work, received):
        assert pending is not None
        try:
            pending.wait()
        except dist.DistBackendError:
            continue
        raise AssertionError("a work nobody joined came to a good end")
    return seconds


def test_destroy_with_work_in_flight() -> None:
    with fresh_ranks(keep_waiting_work, 2) as ranks:
        (first,) = ranks.outcomes([0])
        assert first.report is not None
        assert not first.raised, first
        assert first.report.value < 2.0 + expect.BOUND_S, "destroy gives pending work 2 s"
        ranks.tell(1, "join in")
        (second,) = ranks.outcomes([1])
        expect.broken(second, "rank 0", first.report.at, within=60.0)


def check_work_outlives_group(rank: int, world_size: int) -> None:
    tensor = torch.ones(1000)
    work = dist.all_reduce(tensor, async_op=True)
    work.wait()
    dist.destroy_process_group()
    assert work.is_completed()
    work.wait()
    assert (tensor == float(world_size)).all()
    value = work.get_future().value()[0]
    assert torch.equal(value, tensor)


def test_a_work_outlives_its_group() -> None:
    run_ranks(check_work_outlives_group, 2)


def check_destroy_twice(rank: int, world_size: int) -> None:
    group = dist.new_group(list(range(world_size)))
    backend = group._get_backend(torch.device("cpu"))
    dist.barrier(group=group)
    dist.destroy_process_group(group)
    backend.shutdown()  # nothing: it is shut down
    backend.shutdown()
    backend.abort()
    with pytest.raises(dist.DistBackendError):
        backend.barrier().wait()
    dist.barrier()  # the default group is none the worse


def test_destroy_twice_is_nothing() -> None:
    run_ranks(check_destroy_twice, 2)


def check_abort(rank: int, world_size: int) -> str:
    group = dist.new_group(list(range(world_size)))
    dist.barrier()  # on the other group: all have joined this one
    if rank == 0:
        group._get_backend(torch.device("cpu")).abort()
    try:
        dist.barrier(group=group)
    except dist.DistBackendError as error:
        dist.barrier()  # another group is none the worse
        return str(error)
    return ""


def test_abort_reaches_everybody() -> None:
    for rank, text in enumerate(run_ranks(check_abort, 3)):
        assert "abort" in text.lower(), f"rank {rank}: {text!r}"
