"""A stopped rank is late, not dead: an error at the timeout, which says what it is doing."""

from __future__ import annotations

import signal

import torch
import torch.distributed as dist

from faults import expect
from faults.calls import COUNT
from fresh import fresh_ranks
from rank_process import Control

TIMEOUT_S = 3.0
LATE = 1


def wait_for_the_late(control: Control) -> None:
    control.init(timeout_s=TIMEOUT_S)
    dist.all_reduce(torch.ones(4))
    control.reached("ready")
    control.wait_for("go on")
    dist.all_reduce(torch.ones(1000))


def test_a_stopped_rank_is_named_with_its_state_and_raises_when_it_goes_on() -> None:
    with fresh_ranks(wait_for_the_late, 3) as ranks:
        ranks.wait_until("ready")
        ranks.signal(LATE, signal.SIGSTOP)
        at = 0.0
        for rank in (0, 2):
            at = ranks.signal(rank, signal.SIGCONT)  # the moment before they begin to wait
            ranks.tell(rank, "go on")
        pattern = (
            r"^fastvideo: all_reduce\(SUM, float32 x 1000\) seq 2 on group .*"
            r"\(2 of 3 ranks arrived\), waited 3\.\d s of 3\.0 s\..*"
            rf"missing: rank {LATE}  pid {ranks.pid(LATE)}  state T \(stopped by a signal\)"
            r".*last finished: all_reduce.* seq 1"
            r".*Group is now unusable; destroy_process_group\(\) and init again\.$"
        )
        for outcome in ranks.outcomes([0, 2]):
            seconds = expect.broken(outcome, pattern, at, TIMEOUT_S + expect.BOUND_S)
            assert seconds > TIMEOUT_S - 0.5, "raised before the timeout"
        ranks.signal(LATE, signal.SIGCONT)
        ranks.tell(LATE, "go on")
        (late,) = ranks.outcomes([LATE])
        expect.broken(late, "all_reduce|group", at, within=60.0)


def loop(control: Control) -> None:
    control.init(timeout_s=TIMEOUT_S)
    dist.all_reduce(torch.ones(4))
    control.reached("inside")
    while True:
        dist.all_reduce(torch.ones(COUNT))


def test_a_rank_stopped_anywhere_in_a_collective() -> None:
    with fresh_ranks(loop, 3) as ranks:
        ranks.wait_until("inside")
        at = ranks.signal(LATE, signal.SIGSTOP)
        for outcome in ranks.outcomes([0, 2]):
            pattern = rf"all_reduce.* seq \d+ on group.*rank {LATE}  pid {ranks.pid(LATE)}  state T"
            expect.broken(outcome, pattern, at, TIMEOUT_S + expect.BOUND_S)
        ranks.signal(LATE, signal.SIGCONT)
        (late,) = ranks.outcomes([LATE])
        expect.broken(late, "all_reduce", at, within=60.0)


def late_but_alive(control: Control) -> None:
    control.init(timeout_s=TIMEOUT_S)
    dist.barrier()
    if control.rank == LATE:
        control.reached("busy")
        control.wait_for("the end")
        return
    dist.barrier()


def test_a_late_rank_is_named_with_its_state() -> None:
    with fresh_ranks(late_but_alive, 2) as ranks:
        (busy,) = ranks.wait_until("busy", [LATE])
        (outcome,) = ranks.outcomes([0])
        pattern = rf"barrier.*seq 2.*missing: rank {LATE}  pid {ranks.pid(LATE)}  state [RSD]"
        expect.broken(outcome, pattern, busy["at"], TIMEOUT_S + expect.BOUND_S)
        ranks.tell(LATE, "the end")
        (late,) = ranks.outcomes([LATE])
        assert not late.raised, late


def recv_nothing(control: Control) -> None:
    control.init(timeout_s=TIMEOUT_S)
    dist.barrier()
    if control.rank == LATE:
        control.reached("busy")
        control.wait_for("the end")
        return
    dist.recv(torch.empty(3), LATE)


def test_a_receive_ends_at_the_timeout() -> None:
    with fresh_ranks(recv_nothing, 2) as ranks:
        (busy,) = ranks.wait_until("busy", [LATE])
        (outcome,) = ranks.outcomes([0])
        pattern = rf"recv\(float32 x 3.*rank {LATE}.*3\.0 s"
        expect.broken(outcome, pattern, busy["at"], TIMEOUT_S + expect.BOUND_S)
        ranks.tell(LATE, "the end")
        ranks.outcomes([LATE])
