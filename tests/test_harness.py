"""The harness itself: whatever goes wrong in a rank must fail the test, and say where."""

from __future__ import annotations

import os
import signal
import socket
import threading

import pytest
import torch
import torch.distributed as dist

from fresh import fresh_ranks
from harness import RanksFailed, pool, run_ranks
from rank_process import Control

kept: list[socket.socket] = []


def succeed(rank: int, world_size: int, factor: int) -> int:
    tensor = torch.tensor([rank + 1])
    dist.all_reduce(tensor)
    return int(tensor) * factor


def test_results_come_by_rank_and_workers_stay() -> None:
    assert run_ranks(succeed, 3, factor=10) == [60, 60, 60]
    before = pool.process_groups()
    assert run_ranks(succeed, 2, factor=1) == [3, 3]
    assert pool.process_groups() == before


def fail_on_one(rank: int, world_size: int) -> None:
    if rank == 1:
        raise ArithmeticError("the first to fail")
    dist.barrier()


def test_the_first_failure_comes_first_and_all_ranks_are_shown() -> None:
    with pytest.raises(RanksFailed) as caught:
        run_ranks(fail_on_one, 3)
    text = str(caught.value)
    assert text.index("rank 1 raised") < text.index("rank 0") < len(text)
    assert "the first to fail" in text
    assert 'test_harness.py", line' in text
    assert "rank 2" in text
    assert run_ranks(succeed, 3, factor=1) == [6, 6, 6], "the next call has new workers"


def die(rank: int, world_size: int) -> None:
    if rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_dies_fails_the_test() -> None:
    with pytest.raises(RanksFailed, match="rank 0 died, exit code -9"):
        run_ranks(die, 2)


def hang(rank: int, world_size: int) -> None:
    if rank == 1:
        threading.Event().wait()


def test_a_rank_that_hangs_fails_the_test_with_its_stack() -> None:
    with pytest.raises(RanksFailed, match=r"rank 1 did not finish \(limit 2 s\)") as caught:
        run_ranks(hang, 2, timeout=2)
    assert "in hang" in str(caught.value)


def leak(rank: int, world_size: int) -> None:
    if rank == 1:
        kept.extend(socket.socketpair())


def test_a_descriptor_kept_fails_the_test() -> None:
    with pytest.raises(RanksFailed, match=r"rank 1 still holds, after destroy, .*socket.*2"):
        run_ranks(leak, 2)


def wait_for_ever(control: Control) -> None:
    control.reached("here", number=control.rank)
    control.wait_for("nothing")


def test_fresh_ranks_tell_points_and_are_ended() -> None:
    with fresh_ranks(wait_for_ever, 2) as ranks:
        assert [facts["number"] for facts in ranks.wait_until("here")] == [0, 1]
        with pytest.raises(RanksFailed, match="in wait_for_ever"):
            ranks.outcomes(within=0.5)
        pids = [ranks.pid(rank) for rank in range(2)]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def leave_child(control: Control) -> None:
    if os.fork() == 0:
        signal.pause()
        os._exit(0)


def test_a_process_left_behind_fails_the_test() -> None:
    with pytest.raises(RanksFailed, match="left the processes"), fresh_ranks(leave_child, 1) as one:
        one.outcomes()
