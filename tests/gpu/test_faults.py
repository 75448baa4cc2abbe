"""Ranks that die, do not come or give up: the others raise within a bound, their GPU goes on."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ErrorType

from fresh import fresh_ranks
from gpu.one_gpu import WORLD, join, run
from rank_process import Control

pytestmark = pytest.mark.timeout(400)

LIMIT_S = 4.0
BOUND_S = 5.0  # beyond the limit: the device is shared, and an abort takes its turn


def failure_of(work: dist.Work) -> str:
    """What `wait` raises once the device has let go."""
    try:
        work.wait()
        torch.cuda.synchronize()
        work.wait()
    except dist.DistBackendError as error:
        return str(error)
    return "nothing"


def check_the_gpu_goes_on(device: torch.device) -> None:
    torch.cuda.synchronize()
    assert float(torch.ones(1000, device=device).sum()) == 1000.0


def connected(control: Control) -> tuple[torch.device, torch.Tensor]:
    device = join(control)
    x = torch.ones(1000, device=device)
    dist.all_reduce(x)
    torch.cuda.synchronize()
    return device, x


def until_killed(control: Control) -> str:
    device, x = connected(control)
    control.reached("connected")
    if control.rank == 1:
        control.wait_for("never")
    work = dist.all_reduce(x, async_op=True)
    assert work is not None
    control.reached("waiting")
    end = time.monotonic() + 60
    while work.is_success() and time.monotonic() < end:
        time.sleep(0.01)
    words = failure_of(work)
    check_the_gpu_goes_on(device)
    return words


def test_a_killed_rank_ends_what_runs() -> None:
    with fresh_ranks(until_killed, WORLD) as ranks:
        ranks.wait_until("connected", within=200)
        ranks.wait_until("waiting", [0])
        at = ranks.kill(1)
        outcome = ranks.outcomes([0], within=100)[0]
    assert outcome.report is not None, str(outcome)
    assert not outcome.raised, str(outcome)
    assert "rank 1" in str(outcome.report.value), str(outcome)
    assert outcome.report.at - at < BOUND_S
    assert outcome.exitcode == 0, "the process survives"


def withheld(control: Control) -> tuple[str, float]:
    device, x = connected(control)
    backend = dist.group.WORLD._get_backend(device)  # type: ignore[union-attr]
    backend.set_timeout(timedelta(seconds=LIMIT_S))
    if control.rank == 1:
        control.reached("idle")
        control.wait_for("go on")
        return "", 0.0
    begun = time.monotonic()
    work = dist.all_reduce(x, async_op=True)
    assert work is not None
    while work.is_success() and time.monotonic() < begun + 60:
        time.sleep(0.01)
    took = time.monotonic() - begun
    words = failure_of(work)
    check_the_gpu_goes_on(device)
    return words, took


def test_a_withheld_collective_ends_at_its_limit() -> None:
    with fresh_ranks(withheld, WORLD) as ranks:
        ranks.wait_until("idle", [1], within=200)
        zero = ranks.outcomes([0], within=100)[0]
        ranks.tell(1, "go on")
        ranks.outcomes([1])
    assert zero.report is not None, str(zero)
    assert not zero.raised, str(zero)
    words, took = zero.report.value
    assert "all_reduce" in words
    assert "rank 1" in words
    assert LIMIT_S - 0.5 < took < LIMIT_S + BOUND_S


def aborted(control: Control) -> str:
    device, x = connected(control)
    backend = dist.group.WORLD._get_backend(device)  # type: ignore[union-attr]
    end = time.monotonic() + 60
    if control.rank == 1:  # does not come, and hears of it
        while backend.get_error() == ErrorType.SUCCESS and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(dist.DistBackendError) as caught:
            dist.all_reduce(x)
        check_the_gpu_goes_on(device)
        return str(caught.value)
    threading.Timer(1.0, backend.abort).start()
    work = dist.all_to_all_single(torch.empty_like(x), x, async_op=True)
    assert work is not None
    while work.is_success() and time.monotonic() < end:
        time.sleep(0.01)
    words = failure_of(work)
    check_the_gpu_goes_on(device)
    return words


def test_an_abort_from_another_thread() -> None:
    for words in run(aborted):
        assert "abort" in words
