"""Ctrl-C in a rank that waits: KeyboardInterrupt there, an error on the others."""

from __future__ import annotations

import signal

import pytest
import torch
import torch.distributed as dist

from fresh import fresh_ranks
from rank_process import Control


def wait_for_ever(control: Control, call: str) -> None:
    control.init()
    dist.barrier()
    if control.rank == 1:
        control.wait_for("join in")
        dist.all_reduce(torch.ones(1))
        return
    control.reached("waiting")
    tensor = torch.ones(1)
    if call == "all_reduce":
        dist.all_reduce(tensor)
    elif call == "barrier":
        dist.barrier()
    elif call == "recv":
        dist.recv(tensor, 1)
    else:
        dist.all_reduce(tensor, async_op=True).wait()


@pytest.mark.parametrize("call", ["all_reduce", "barrier", "recv", "work.wait"])
def test_a_waiting_rank_can_be_interrupted(call: str) -> None:
    with fresh_ranks(wait_for_ever, 2, call=call) as ranks:
        ranks.wait_until("waiting", [0])
        at = ranks.signal(0, signal.SIGINT)
        (interrupted,) = ranks.outcomes([0], within=20)
        assert interrupted.report is not None, interrupted
        assert "KeyboardInterrupt" in interrupted.report.types, interrupted
        assert interrupted.report.at - at < 2.0
        ranks.tell(1, "join in")
        (other,) = ranks.outcomes([1], within=20)
        assert other.report is not None, other
        assert "DistBackendError" in other.report.types, other
