"""SIGKILL of a rank: every survivor raises, soon, naming rank, process, operation and number."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from faults import expect
from faults.calls import CALLS, word_for
from fresh import fresh_ranks
from rank_process import Control

VICTIM = 1
Record = Callable[[str, object], None]


def loop(control: Control, call: str, fork_child: bool) -> None:
    control.init(timeout_s=60)
    if fork_child and control.rank == VICTIM and os.fork() == 0:
        while True:  # as a DataLoader's worker: it holds every descriptor of its parent
            signal.pause()
    for _ in range(3):
        CALLS[call]()
    control.reached("inside")
    while True:
        CALLS[call]()


@pytest.mark.parametrize("fork_child", [False, True], ids=["alone", "with a forked child"])
@pytest.mark.parametrize("call", CALLS)
def test_survivors_raise(call: str, fork_child: bool, record_property: Record) -> None:
    with fresh_ranks(loop, 3, allow_orphans=True, call=call, fork_child=fork_child) as ranks:
        ranks.wait_until("inside")
        pid = ranks.pid(VICTIM)
        at = ranks.kill(VICTIM)
        for outcome in ranks.outcomes([0, 2]):
            named = rf"{word_for(call)}\(?.*on group.*rank {VICTIM} .*pid {pid}"
            if call != "send and recv":
                named = rf"{word_for(call)}\(?.*seq \d+ on group.*rank {VICTIM} .*pid {pid}"
            record_property("seconds", expect.broken(outcome, named, at))


def wait_outside(control: Control) -> None:
    control.init(timeout_s=60)
    dist.barrier()
    if control.rank == VICTIM:
        control.reached("outside")
        control.wait_for("nothing")
    control.reached("waiting")
    dist.all_reduce(torch.ones(4))


@pytest.mark.parametrize("world_size", [2, 5])
def test_survivors_that_wait_for_the_dead_raise(world_size: int) -> None:
    others = [rank for rank in range(world_size) if rank != VICTIM]
    with fresh_ranks(wait_outside, world_size) as ranks:
        ranks.wait_until("outside", [VICTIM])
        ranks.wait_until("waiting", others)
        at = ranks.kill(VICTIM)
        for outcome in ranks.outcomes(others):
            pattern = rf"all_reduce\(SUM, float32 x 4\) seq \d+.*rank {VICTIM} .*pid"
            expect.broken(outcome, pattern, at)


def go_on(control: Control) -> list[str]:
    """After the death: every later call raises at once, and the process can begin again."""
    control.init(timeout_s=60)
    dist.barrier()
    if control.rank == VICTIM:
        control.reached("outside")
        control.wait_for("nothing")
    texts = []
    for _ in range(3):
        try:
            dist.all_reduce(torch.ones(4))
        except dist.DistBackendError as error:
            texts.append(str(error))
    dist.destroy_process_group()
    control.reached("destroyed")
    # The survivors alone, as a smaller world on the same processes.
    dist.init_process_group(
        control.place.backend,
        store=control.place.connect(control.prefix + "/survivors"),
        rank={0: 0, 2: 1}[control.rank],
        world_size=2,
    )
    tensor = torch.ones(300_000)
    dist.all_reduce(tensor)
    assert (tensor == 2.0).all()
    dist.destroy_process_group()
    return texts


def test_survivors_form_a_new_group() -> None:
    with fresh_ranks(go_on, 3) as ranks:
        ranks.wait_until("outside", [VICTIM])
        ranks.kill(VICTIM)
        for outcome in ranks.outcomes([0, 2]):
            assert outcome.report is not None
            assert not outcome.raised, outcome
            texts = outcome.report.value
            assert len(texts) == 3, "a call on the broken group came through"
            assert f"rank {VICTIM}" in texts[2], "later errors keep the reason"


def test_all_ranks_killed_leave_nothing_and_can_start_again() -> None:
    with fresh_ranks(loop, 3, call="all_reduce", fork_child=False) as ranks:
        ranks.wait_until("inside")
        for rank in range(3):
            ranks.kill(rank)
        for outcome in ranks.outcomes():
            assert outcome.exitcode == -signal.SIGKILL, outcome
        prefix = ranks.prefix
    # The store still holds what the dead have written.
    with fresh_ranks(once, 3, prefix=prefix) as ranks:
        for outcome in ranks.outcomes():
            assert not outcome.raised, outcome
            assert outcome.exitcode == 0, outcome


def once(control: Control) -> None:
    control.init(timeout_s=30)
    tensor = torch.ones(100_000)
    dist.all_reduce(tensor)
    assert (tensor == float(control.world_size)).all()
    dist.destroy_process_group()
