"""CUDA calls, on fakes, that do not come to a good end: given up, destroyed, never connected."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

import gpu_fakes
from fresh import Outcome
from gpu_fakes import Fakes, on_gpu, synchronize
from gpu_fakes.ranks import gpu_ranks, run_gpu_ranks
from rank_process import Control

WORLD = 2


def join(control: Control, fakes: Fakes, folder: str, **kwargs: Any) -> None:
    gpu_fakes.become_gpu_rank(fakes, folder)
    control.init(**kwargs)


def backend() -> Any:
    return dist.group.WORLD._get_backend(torch.device("cuda"))  # type: ignore[union-attr]


def cut_off(control: Control, fakes: Fakes, folder: str) -> str:
    join(control, fakes, folder)
    there = on_gpu(torch.ones(1))
    dist.all_reduce(there)
    synchronize()
    if control.rank == 1:
        control.wait_for("go")  # and does not call it
        dist.destroy_process_group()
        return ""
    work = dist.all_reduce(there, async_op=True)
    assert work is not None
    dist.destroy_process_group()
    control.reached("destroyed")
    assert not work.is_success()
    with pytest.raises(dist.DistBackendError) as caught:
        work.wait()
    return str(caught.value)


def test_what_destroying_cut_off_raises() -> None:
    with gpu_ranks(cut_off, WORLD) as ranks:
        ranks.wait_until("destroyed", [0])
        ranks.tell(1, "go")
        for outcome in ranks.outcomes(within=30):
            assert not outcome.raised, str(outcome)
            assert outcome.report is not None
            if outcome.rank == 0:
                assert "was destroyed while calls on CUDA were under way" in outcome.report.value


def late_wait(control: Control, fakes: Fakes, folder: str) -> None:
    join(control, fakes, folder)
    memory = torch.zeros(1)
    there = on_gpu(memory)
    dist.all_reduce(there)
    nothing = dist.irecv(on_gpu(torch.ones(1)), 1 - control.rank)
    assert nothing is not None
    done = dist.all_reduce(there, async_op=True)
    assert done is not None
    dist.destroy_process_group()
    done.wait()  # it had time to end
    with pytest.raises(dist.DistBackendError, match="was destroyed"):
        nothing.wait()


def test_works_may_be_waited_for_after_destroying() -> None:
    run_gpu_ranks(late_wait, WORLD)


def beside_a_barrier(control: Control, fakes: Fakes, folder: str) -> list[float]:
    join(control, fakes, folder)
    memory = torch.full((1,), float(control.rank))
    there = on_gpu(memory)
    dist.all_reduce(there)
    if control.rank == 0:
        barrier = threading.Thread(target=dist.barrier)
        barrier.start()
        time.sleep(0.2)
        dist.send(there, 1)
        barrier.join()
    else:
        dist.recv(there, 0)
        synchronize()
        dist.barrier()
    return memory.tolist()


def test_a_message_goes_beside_a_barrier() -> None:
    run_gpu_ranks(beside_a_barrier, WORLD, within=20)


def aborted_while_connecting(control: Control, fakes: Fakes, folder: str, how: str) -> str:
    join(control, fakes, folder)
    if control.rank == 1:
        control.wait_for("go")
        return ""
    end = backend().abort if how == "abort" else dist.destroy_process_group
    threading.Timer(0.3, end).start()
    with pytest.raises(dist.DistBackendError) as caught:
        dist.all_reduce(on_gpu(torch.ones(1)))
    control.reached("ended")
    return str(caught.value)


@pytest.mark.parametrize("how", ["abort", "destroy"])
def test_connecting_is_given_up_from_another_thread(how: str) -> None:
    with gpu_ranks(aborted_while_connecting, WORLD, how=how) as ranks:
        ranks.wait_until("ended", [0])
        ranks.tell(1, "go")
        zero = ranks.outcomes(within=20)[0]
        assert zero.report is not None
        assert not zero.raised, str(zero)
        assert "given up" in zero.report.value, zero
        assert ("abort() was called" if how == "abort" else "destroyed") in zero.report.value


def alone(control: Control, fakes: Fakes, folder: str) -> str:
    join(control, fakes, folder)
    if control.rank == 1:
        control.reached("there")
        control.wait_for("never")
    control.reached("connecting")
    with pytest.raises(dist.DistBackendError) as caught:
        dist.all_reduce(on_gpu(torch.ones(1)))
    return str(caught.value)


def test_a_rank_killed_before_its_first_call() -> None:
    with gpu_ranks(alone, WORLD) as ranks:
        ranks.wait_until("there", [1])
        ranks.wait_until("connecting", [0])
        at = ranks.kill(1)
        outcome: Outcome = ranks.outcomes([0])[0]
    assert outcome.report is not None, str(outcome)
    assert not outcome.raised, str(outcome)
    assert outcome.report.at - at < 3.0
    assert "rank 1" in outcome.report.value, str(outcome)
