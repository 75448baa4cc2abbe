"""SIGKILL of a rank during each call of the layer: every survivor raises, soon, and says whom."""

from __future__ import annotations

import functools
import re
import statistics
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch

from fastvideo_dist import parallel_state as ps
from fastvideo_dist.communication_op import sequence_model_parallel_shard
from fastvideo_dist.utils import StatelessProcessGroup
from faults import expect
from fresh import Outcome, fresh_ranks
from rank_process import Control

VICTIM = 1
Record = Callable[[str, object], None]


def tensors() -> dict[str, object]:
    return {"x": torch.ones(300_000), "y": {"z": torch.ones(10)}, "text": "t"}


def group() -> ps.GroupCoordinator:
    return ps.get_sp_group()


def around(send: Callable[[int], object], receive: Callable[[int], object]) -> None:
    """To the next rank and from the one before; rank 0 receives first, so that nobody is stuck."""
    me, size = group().rank_in_group, group().world_size
    if me == 0:
        receive(size - 1)
    send((me + 1) % size)
    if me != 0:
        receive(me - 1)


def backward_of_shard() -> None:
    x = torch.ones(1, 3000, 64, requires_grad=True)
    sequence_model_parallel_shard(x, dim=1)[0].sum().backward()


def remake_groups() -> None:
    ps.destroy_model_parallel()
    ps.initialize_model_parallel(3, 3)


def asynchronous() -> None:
    me = group().rank_in_group
    sent = group().isend_tensor_dict(tensors(), (me + 1) % 3)
    group().irecv_tensor_dict((me - 1) % 3).wait()
    sent.wait()


LARGE = torch.Size([1, 300, 48, 64])
CALLS: dict[str, Callable[[], object]] = {
    "all_reduce": lambda: group().all_reduce(torch.ones(LARGE)),
    "all_gather": lambda: group().all_gather(torch.ones(LARGE)),
    "all_to_all_4D": lambda: group().all_to_all_4D(torch.ones(LARGE)),
    "shard, backward": backward_of_shard,
    "all_to_all_4D, unequal": lambda: group().all_to_all_4D(
        torch.ones(LARGE), scatter_sizes=[10, 20, 18]
    ),
    "broadcast": lambda: group().broadcast(torch.ones(LARGE)),
    "gather": lambda: group().gather(torch.ones(LARGE)),
    "barrier": lambda: group().barrier(),
    "broadcast_object": lambda: group().broadcast_object(tensors()),
    "broadcast_object, short": lambda: group().broadcast_object({"step": 1}),
    "broadcast_object, queue": lambda: ps.get_tp_group().broadcast_object(tensors()),
    "broadcast_object_list": lambda: group().broadcast_object_list([tensors()]),
    "broadcast_tensor_dict": lambda: group().broadcast_tensor_dict(tensors()),
    "send, recv": lambda: around(
        lambda to: group().send(torch.ones(LARGE), to),
        lambda source: group().recv(LARGE, torch.float32, source),
    ),
    "send, recv, short": lambda: around(
        lambda to: group().send(torch.ones(3), to),
        lambda source: group().recv(torch.Size([3]), torch.float32, source),
    ),
    "objects": lambda: around(
        lambda to: group().send_object(tensors(), to), lambda source: group().recv_object(source)
    ),
    "tensor dicts": lambda: around(
        lambda to: group().send_tensor_dict(tensors(), to),
        lambda source: group().recv_tensor_dict(source),
    ),
    "isend, irecv": asynchronous,
    "initialize_model_parallel": remake_groups,
}


def loop(control: Control, call: str) -> None:
    control.init(timeout_s=60)
    ps.init_distributed_environment(control.world_size, control.rank)
    ps.initialize_model_parallel(3, 3)
    for _ in range(3):
        CALLS[call]()
    control.reached("inside")
    while True:
        CALLS[call]()


@functools.cache
def seconds_until_raised(call: str) -> list[float]:
    """Kills a rank inside `call`; how long after it each survivor raised."""
    with fresh_ranks(loop, 3, call=call) as ranks:
        ranks.wait_until("inside")
        pid = ranks.pid(VICTIM)
        at = ranks.kill(VICTIM)
        outcomes = ranks.outcomes([0, 2])
    return [expect.broken(outcome, rf"(rank|reader|writer).*{pid}", at) for outcome in outcomes]


@pytest.mark.parametrize("call", CALLS)
def test_survivors_raise(call: str, record_property: Record) -> None:
    record_property("seconds", seconds_until_raised(call))


PROMISED_S = 0.1


def test_the_median_survivor_raises_within_a_hundred_milliseconds(record_property: Record) -> None:
    """The bound is promised for an idle machine; the median forgives it a neighbour."""
    seconds = [took for call in CALLS for took in seconds_until_raised(call)]
    record_property("seconds", seconds)
    assert statistics.median(seconds) < PROMISED_S, seconds


STATELESS: dict[str, Callable[[StatelessProcessGroup], object]] = {
    "barrier": lambda pg: pg.barrier(),
    "broadcast_obj": lambda pg: pg.broadcast_obj(1, VICTIM),
    "all_gather_obj": lambda pg: pg.all_gather_obj(1),
    "recv_obj": lambda pg: pg.recv_obj(VICTIM) if pg.rank != VICTIM else None,
}


def stateless_loop(control: Control, call: str, port: int) -> None:
    pg = StatelessProcessGroup.create(
        "127.0.0.1", port, control.rank, 3, timeout=timedelta(seconds=60)
    )
    pg.barrier()
    if control.rank == VICTIM:
        control.reached("outside")
        control.wait_for("nothing")
    control.reached("waiting")
    STATELESS[call](pg)


@pytest.mark.parametrize("call", STATELESS)
def test_survivors_of_a_stateless_group_raise(
    call: str, free_port: int, record_property: Record
) -> None:
    with fresh_ranks(stateless_loop, 3, call=call, port=free_port) as ranks:
        ranks.wait_until("outside", [VICTIM])
        ranks.wait_until("waiting", [0, 2])
        at = ranks.kill(VICTIM)
        for outcome in ranks.outcomes([0, 2]):
            record_property("seconds", lost(outcome, call, at))


def lost(outcome: Outcome, call: str, since: float) -> float:
    assert outcome.report is not None, outcome
    assert "ConnectionError" in outcome.report.types, outcome
    assert re.search(rf"{call}.*rank {VICTIM} has ended|store of rank 0", outcome.report.text)
    seconds = outcome.report.at - since
    assert seconds < expect.BOUND_S, outcome
    return seconds
