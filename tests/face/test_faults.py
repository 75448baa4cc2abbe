"""Ranks that die, disagree, do not come or fork: the others raise, soon, and the process lives."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from face.jobs import connect, shared_id
from fastvideo_dist import nccl
from fastvideo_dist.nccl import Communicator, UniqueId, get_unique_id
from faults import expect
from faults.test_fork import in_child
from fresh import fresh_ranks
from harness import run_ranks
from rank_process import Control

VICTIM = 1


def call_all(comm: Communicator) -> dict[str, Any]:
    n, x = comm.nranks, np.ones(6 * comm.nranks)
    out, whole = np.empty_like(x), np.empty(len(x) * n)
    return {
        "allreduce": lambda: comm.allreduce(x, out, nccl.SUM),
        "reduce": lambda: comm.reduce(x, out, nccl.SUM, 0),
        "broadcast": lambda: comm.broadcast(x, out, 0),
        "allgather": lambda: comm.allgather(x, whole),
        "gather": lambda: comm.gather(x, whole, 0),
        "scatter": lambda: comm.scatter(x, out[:6], 0),
        "reduce_scatter": lambda: comm.reduce_scatter(x, out, nccl.SUM),
        "alltoall": lambda: comm.alltoall(x, out),
    }


def meet(control: Control, timeout: float = 60) -> Communicator:
    """Through the test's store: these ranks have no process group."""
    store = control.place.connect(control.prefix)
    if control.rank == 0:
        store.set("id", bytes(get_unique_id()))
    unique_id = UniqueId.from_bytes(store.get("id"))
    return Communicator.init(control.world_size, control.rank, unique_id, timeout=timeout)


def loop(control: Control, call: str) -> None:
    comm = meet(control)
    assert not dist.is_initialized()
    calls = call_all(comm)
    calls["allreduce"]()
    control.reached("inside")
    while True:
        calls[call]()
        calls["allreduce"]()


@pytest.mark.parametrize("call", ["allreduce", "alltoall", "gather"])
def test_survivors_of_a_killed_rank_raise(call: str) -> None:
    with fresh_ranks(loop, 3, call=call) as ranks:
        ranks.wait_until("inside")
        pid = ranks.pid(VICTIM)
        at = ranks.kill(VICTIM)
        for outcome in ranks.outcomes([0, 2]):
            expect.broken(outcome, rf'seq \d+ on group "nccl-.*rank {VICTIM} .*pid {pid}', at)


def wait_for_message(control: Control) -> None:
    comm = meet(control)
    if control.rank == VICTIM:
        control.reached("outside")
        control.wait_for("nothing")
    control.reached("waiting")
    comm.recv(np.empty(3), VICTIM)


def test_a_receiver_hears_of_the_senders_death() -> None:
    with fresh_ranks(wait_for_message, 2) as ranks:
        ranks.wait_until("outside", [VICTIM])
        ranks.wait_until("waiting", [0])
        pid = ranks.pid(VICTIM)
        at = ranks.kill(VICTIM)
        expect.broken(ranks.outcomes([0])[0], rf"rank {VICTIM} .*pid {pid}", at)


def join_alone(control: Control) -> None:
    store = control.place.connect(control.prefix)
    if control.rank == 0:
        store.set("id", bytes(get_unique_id()))
        control.reached("made")
        control.wait_for("nothing")
    unique_id = UniqueId.from_bytes(store.get("id"))
    control.wait_for("go")
    Communicator.init(2, 1, unique_id, timeout=30)


def test_the_process_that_made_the_id_has_ended() -> None:
    with fresh_ranks(join_alone, 2) as ranks:
        ranks.wait_until("made", [0])
        at = ranks.kill(0)
        ranks.outcomes([0])
        ranks.tell(1, "go")
        expect.broken(ranks.outcomes([1])[0], "the process that made it .*has ended", at, 30)


def interrupted(control: Control) -> None:
    comm = meet(control)
    if control.rank == 1:
        control.reached("outside")
        control.wait_for("go")
        return
    control.reached("waiting")
    comm.allreduce(np.ones(1), np.ones(1), nccl.SUM)


def test_ctrl_c_ends_a_wait() -> None:
    with fresh_ranks(interrupted, 2) as ranks:
        ranks.wait_until("outside", [1])
        ranks.wait_until("waiting", [0])
        ranks.wait_until_asleep(0)
        ranks.signal(0, signal.SIGINT)
        outcome = ranks.outcomes([0])[0]
        assert outcome.report is not None
        assert "KeyboardInterrupt" in outcome.report.types, outcome
        ranks.tell(1, "go")
        ranks.outcomes([1])


def check_mismatch(rank: int, world_size: int, what: str) -> None:
    comm = connect(rank, world_size)
    x, out = np.ones(4), np.full(8, -1.0)
    odd = rank == 1
    calls = {
        "dtype": lambda: comm.allreduce(
            np.ones(4, np.float32 if odd else np.float64),
            np.full(4, -1, np.float32 if odd else np.float64),
            nccl.SUM,
        ),
        "count": lambda: comm.allreduce(x[: 3 if odd else 4], out, nccl.SUM),
        "op": lambda: comm.allreduce(x, out, nccl.MAX if odd else nccl.SUM),
        "root": lambda: comm.broadcast(x, out[:4], 1 if odd else 0),
        "call": lambda: comm.allgather(x, out) if odd else comm.alltoall(out, np.empty(8)),
        "scalar": lambda: comm.allreduce(x, out, comm.create_pre_mul_sum(0.5 if odd else 0.25)),
        "integer scalar": lambda: comm.allreduce(
            np.ones(4, int), np.ones(4, int), comm.create_pre_mul_sum(3 if odd else 4)
        ),
    }
    with pytest.raises(dist.DistBackendError, match=r"disagree|different|differ|mismatch"):
        calls[what]()
    assert (out == -1).all(), "an output was touched"
    assert comm.is_valid
    with pytest.raises(dist.DistBackendError):
        comm.allreduce(x, x, nccl.SUM)
    comm.destroy()


@pytest.mark.parametrize(
    "what", ["dtype", "count", "op", "root", "call", "scalar", "integer scalar"]
)
def test_ranks_that_disagree_are_told(what: str) -> None:
    run_ranks(check_mismatch, 2, what=what)


def check_message_mismatch(rank: int, world_size: int) -> None:
    comm = connect(rank, world_size)
    exchange, dtype = (comm.recv, np.float32) if rank == 1 else (comm.send, np.float64)
    with pytest.raises(dist.DistBackendError, match="float64"):
        exchange(np.ones(100_000, dtype), 1 - rank)
    comm.destroy()


def test_a_message_of_another_type() -> None:
    run_ranks(check_message_mismatch, 2)


def check_timeout(rank: int, world_size: int) -> None:
    comm = Communicator.init(world_size, rank, shared_id(rank), timeout=0.5)
    if rank == 0:
        with pytest.raises(dist.DistBackendError, match=r"missing: rank 1"):
            comm.allreduce(np.ones(1), np.ones(1), nccl.SUM)
    dist.barrier()
    comm.destroy()


def test_a_withheld_call_ends_by_the_timeout() -> None:
    run_ranks(check_timeout, 2)


def check_nobody_comes(rank: int, world_size: int) -> None:
    began = time.monotonic()
    with pytest.raises(dist.DistBackendError, match="these ranks had not come: 1"):
        Communicator.init(2, 0, get_unique_id(), timeout=0.5)
    assert time.monotonic() - began < 10


def test_init_ends_by_the_timeout() -> None:
    run_ranks(check_nobody_comes, 1)


def check_abort(rank: int, world_size: int) -> None:
    comm = connect(rank, world_size)
    x = np.ones(4)
    comm.allreduce(x, x, nccl.SUM)
    if rank == 1:
        threading.Timer(0.3, comm.abort).start()
    with pytest.raises(dist.DistBackendError, match=r"aborted by rank 1.*abort"):
        comm.recv(x, 1 - rank)  # nobody sends
    if rank == 0:
        with pytest.raises(dist.DistBackendError, match="abort"):
            comm.allreduce(x, x, nccl.SUM)
    comm.destroy()
    dist.barrier()


def test_abort_from_another_thread_ends_waits_on_all_ranks() -> None:
    run_ranks(check_abort, 2)


def check_leaving(rank: int, world_size: int) -> None:
    comm = connect(rank, world_size)
    if rank == 0:
        with pytest.raises(dist.DistBackendError, match="rank 1"):
            comm.allreduce(np.ones(1), np.ones(1), nccl.SUM)
    comm.destroy()
    dist.barrier()


def test_a_rank_that_has_left_is_not_waited_for() -> None:
    run_ranks(check_leaving, 2)


def check_fork(rank: int, world_size: int) -> list[tuple[str, int]]:
    comm = connect(rank, world_size)
    x = np.ones(4)
    comm.allreduce(x, x, nccl.SUM)

    def use() -> None:
        comm.allreduce(np.ones(4), np.ones(4), nccl.SUM)

    def send() -> None:
        comm.send(np.ones(4), 1 - rank)

    def split() -> None:
        comm.split(0)

    told = [in_child(body) for body in (use, send, split)]
    for body in (lambda: None, comm.destroy, comm.abort):
        assert in_child(body) == ("", 0)
    out = np.zeros(4)
    comm.allreduce(np.ones(4), out, nccl.SUM)
    assert (out == world_size).all(), "the parent's communicator was harmed"
    dist.barrier()
    comm.destroy()
    return told


def test_a_forked_child_is_told_and_harms_nobody() -> None:
    for told in run_ranks(check_fork, 2):
        for said, code in told:
            assert said.startswith("DistBackendError"), (said, code)
            assert "fork" in said
            assert code == 0


def of_children(control: Control) -> list[int]:
    """Forks may be ranks of their own, with the id of their parent."""
    unique_id = get_unique_id()
    codes = []
    pids = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            try:
                with Communicator.init(2, rank, unique_id, timeout=20) as comm:
                    x = torch.ones(3)
                    comm.allreduce(x, x, nccl.SUM)
                    os._exit(0 if (x == 2).all() else 1)
            except BaseException:
                os._exit(2)
        pids.append(pid)
    for pid in pids:
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return codes


def test_forked_children_may_be_ranks() -> None:
    with fresh_ranks(of_children, 1) as ranks:
        outcome = ranks.outcomes()[0]
        assert outcome.report is not None
        assert outcome.report.value == [0, 0], outcome
