"""Message queues over a process group: who is where, remote readers, errors on all ranks."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from fastvideo_dist import _remote_queue
from fastvideo_dist.message_queue import MessageQueue
from fresh import fresh_ranks
from harness import run_ranks
from python.queue_objects import objects, raised, same
from rank_process import Control

SOON_S = 0.05


def over_a_group(rank: int, world: int, writer: int, remote: list[int]) -> list[Any]:
    group = dist.group.WORLD
    assert group is not None
    if rank in remote:  # pretends to be on another host
        _remote_queue.host_identity, kept = (
            lambda: ("elsewhere", rank, 0),
            _remote_queue.host_identity,
        )
    try:
        queue = MessageQueue.create_from_process_group(group, 1 << 20, 3, writer, name="world")
    finally:
        if rank in remote:
            _remote_queue.host_identity = kept
    got = [queue.broadcast_object(obj if rank == writer else None, 30) for obj in objects()]
    if rank != writer:
        wait = raised(TimeoutError, lambda: queue.dequeue(SOON_S))
        assert '"world"' in wait
    dist.barrier()
    if rank == writer:
        queue.enqueue("after the timeout")
        queue.close()
    else:
        assert queue.dequeue(30) == "after the timeout"
        assert "closed" in raised(dist.DistBackendError, lambda: queue.dequeue(30))
        queue.close()
    dist.barrier()
    return [same(a, b) for a, b in zip(objects(), got, strict=True)]


@pytest.mark.parametrize(
    ("world", "writer", "remote"),
    [(1, 0, []), (2, 0, []), (3, 1, []), (4, 3, []), (2, 0, [1]), (3, 0, [2]), (4, 1, [0, 3])],
)
def test_over_a_process_group(world: int, writer: int, remote: list[int]) -> None:
    for answer in run_ranks(over_a_group, world, writer=writer, remote=remote):
        assert all(answer), answer


def several_over_a_group(rank: int, world: int, backend: str) -> None:
    """To a reader who pretends to be on another host, with a timeout shorter than the silence."""
    group = dist.new_group(list(range(world)), timeout=timedelta(seconds=2), backend=backend)
    host = ("host", rank)
    with mock.patch.object(_remote_queue, "host_identity", return_value=host):
        one, two, three = (
            MessageQueue.create_from_process_group(group, 1 << 16, 3, name=name)
            for name in ("one", "two", "three")
        )
    if rank == 0:
        three.close()
        one.enqueue("to one", 30)
        two.enqueue("to two", 30)
        time.sleep(4)  # the silence itself
        two.enqueue("after the silence", 30)
    else:
        assert two.dequeue() == "to two"
        assert two.dequeue() == "after the silence"
        assert one.dequeue() == "to one"
        assert "closed" in raised(dist.DistBackendError, three.dequeue)
    options = group._get_backend(torch.device("cpu")).options
    assert options._timeout == timedelta(seconds=2)
    dist.barrier(group)
    for queue in (one, two, three):
        queue.close()
    dist.barrier()


@pytest.mark.parametrize("backend", ["fastvideo", "gloo"])
def test_queues_of_one_group_do_not_mix_and_may_be_silent(backend: str) -> None:
    run_ranks(several_over_a_group, 2, backend=backend)


def wrong_over_a_group(rank: int, world: int) -> list[str]:
    group = dist.group.WORLD
    assert group is not None
    create = MessageQueue.create_from_process_group
    words = [raised(ValueError, lambda: create(group, writer_rank=world))]
    kind = ValueError if rank == 0 else dist.DistBackendError
    words.append(raised(kind, lambda: create(group, max_chunks=0)))
    dist.barrier()
    return words


def test_over_a_group_with_wrong_arguments() -> None:
    for rank, (outside, sizes) in enumerate(run_ranks(wrong_over_a_group, 2)):
        assert "writer_rank is 2; the group has the ranks 0 to 1" in outside
        assert "0 chunks" in sizes
        assert rank == 0 or "rank 0 of the group could not open its end" in sizes


def die_before_attaching(control: Control) -> None:
    """The last rank is killed when it knows of the queue and has not attached."""
    control.init()
    group = dist.group.WORLD
    assert group is not None
    dist.barrier()
    if control.rank == control.world_size - 1:

        def die(*_: object) -> None:
            control.reached("dying")
            os.kill(os.getpid(), signal.SIGKILL)

        MessageQueue.create_from_handle = die  # type: ignore[method-assign,assignment]
    MessageQueue.create_from_process_group(group, name="mortal")


def test_a_rank_that_dies_before_it_attaches_is_noticed_by_its_group() -> None:
    with fresh_ranks(die_before_attaching, 3) as ranks:
        ranks.wait_until("dying", ranks=[2])
        for outcome in ranks.outcomes([0, 1]):
            assert outcome.report is not None
            assert "DistBackendError" in outcome.report.types, outcome
