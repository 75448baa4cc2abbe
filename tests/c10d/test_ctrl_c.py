"""Ctrl-C in a rank that waits: KeyboardInterrupt there, an error on the others."""

from __future__ import annotations

import re
import signal
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist

from fresh import fresh_ranks
from rank_process import Control


def wait_until_inside(thread: threading.Thread, function: str) -> None:
    """Until `function` is what the thread runs, or has called something native from."""
    while True:
        frame = sys._current_frames().get(thread.ident or 0)
        if frame is not None and frame.f_code.co_name == function:
            return
        time.sleep(0.001)


def tell_when_inside(control: Control, thread: threading.Thread, function: str) -> None:
    wait_until_inside(thread, function)
    control.reached("waiting")


def wait_beside_another_thread(control: Control, tensor: torch.Tensor) -> None:
    """An all_reduce while one of another thread has the group's turn."""
    thread = threading.Thread(target=dist.all_reduce, args=(tensor.clone(),), daemon=True)
    thread.start()
    wait_until_inside(thread, "all_reduce")
    control.reached("waiting")
    dist.all_reduce(tensor)


def wait_for_the_second(control: Control, tensor: torch.Tensor) -> None:
    """Whoever waits for the second call has to run the first: it is not that one's Ctrl-C."""
    entered, leave = threading.Event(), threading.Event()

    def occupy(_: object) -> None:  # the thread that runs queued calls
        entered.set()
        leave.wait(30)

    zeroth = dist.all_reduce(tensor.clone(), async_op=True)
    zeroth.get_future().then(occupy)
    control.place.connect(control.prefix).set("occupied", "")  # now rank 1 may join in
    assert entered.wait(20)
    first = dist.all_reduce(tensor.clone(), async_op=True)
    second = dist.all_reduce(tensor, async_op=True)
    control.reached("waiting")
    try:
        second.wait()
    finally:
        with pytest.raises(dist.DistBackendError, match="by the thread that ran it"):
            first.wait()
        leave.set()


# Ctrl-C reaches the main thread. If another one runs the call, it has made rank 0's contribution,
# and rank 1 meets either that, which is whole, or the death of rank 0 after it.
RUN_BY_ANOTHER_THREAD = {"work.wait", "beside another thread's"}


def wait_for_ever(control: Control, call: str) -> float | None:
    if call == "init" and control.rank == 1:
        control.wait_for("join in")
        control.init(timeout_s=5)
        return None
    if call == "init":
        main = threading.main_thread()
        tell = threading.Thread(target=tell_when_inside, args=(control, main, "create_backend"))
        tell.start()
    control.init()
    dist.barrier()
    if control.rank == 1:
        if call == "another's turn":
            control.place.connect(control.prefix).get("occupied")
            dist.all_reduce(torch.ones(1))
        control.wait_for("join in")
        sum_of_both = torch.ones(1)
        dist.all_reduce(sum_of_both)
        return sum_of_both.item()
    tensor = torch.ones(1)
    if call not in ("beside another thread's", "another's turn"):
        control.reached("waiting")
    if call == "all_reduce":
        dist.all_reduce(tensor)
    elif call == "barrier":
        dist.barrier()
    elif call == "recv":
        dist.recv(tensor, 1)
    elif call == "beside another thread's":
        wait_beside_another_thread(control, tensor)
    elif call == "another's turn":
        wait_for_the_second(control, tensor)
    else:
        dist.all_reduce(tensor, async_op=True).wait()
    return None


@pytest.mark.parametrize(
    "call",
    [
        "init",
        "all_reduce",
        "barrier",
        "recv",
        "work.wait",
        "beside another thread's",
        "another's turn",
    ],
)
def test_a_waiting_rank_can_be_interrupted(call: str) -> None:
    with fresh_ranks(wait_for_ever, 2, call=call) as ranks:
        ranks.wait_until("waiting", [0])
        ranks.wait_until_asleep(0)  # before it waits, Ctrl-C is no business of the group's
        at = ranks.signal(0, signal.SIGINT)
        (interrupted,) = ranks.outcomes([0], within=20)
        assert interrupted.report is not None, interrupted
        assert "KeyboardInterrupt" in interrupted.report.types, interrupted
        assert interrupted.report.at - at < 2.0
        ranks.tell(1, "join in")
        (other,) = ranks.outcomes([1], within=20)
        assert other.report is not None, other
        if call in RUN_BY_ANOTHER_THREAD and not other.raised:
            assert other.report.value == 2.0, other
        else:
            assert "DistBackendError" in other.report.types, other
        if call == "init":
            words = r"rank 0 (gave up: it was interrupted|\(pid \d+\) ended while the group was)"
            assert re.search(words, other.report.text), other  # and not that it never came
