"""StatelessProcessGroup: objects, order, deadlines, and where it listens."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from torch.distributed import HashStore

from fastvideo_dist import nodes
from fastvideo_dist.utils import StatelessProcessGroup
from harness import run_ranks
from layer.jobs import fails

SECOND = timedelta(seconds=1)


def join(port: int, rank: int, world_size: int, **options: Any) -> StatelessProcessGroup:
    return StatelessProcessGroup.create("127.0.0.1", port, rank, world_size, **options)


def check_calls(rank: int, world_size: int, port: int) -> None:
    pg = join(port, rank, world_size)
    for number in range(3):
        for src in range(world_size):
            mine = {"from": rank, "n": number} if rank == src else None
            assert pg.broadcast_obj(mine, src) == {"from": src, "n": number}
        gathered = pg.all_gather_obj((rank, number))
        assert gathered == [(r, number) for r in range(world_size)]
        pg.barrier()
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    if world_size > 1:
        for number in range(3):
            pg.send_obj([rank, number], right)
        assert [pg.recv_obj(left) for _ in range(3)] == [[left, n] for n in range(3)]
    assert nodes.is_the_same_node_as(pg) == list(range(world_size))
    for call in (lambda: pg.broadcast_obj(1, world_size), lambda: pg.send_obj(1, -1)):
        with fails(ValueError, f"on rank {rank}", f"0 to {world_size - 1}"):
            call()
    with fails(ValueError, "itself"):
        pg.recv_obj(rank)
    pg.barrier()
    if rank == 0:  # all messages were deleted by those who read them last
        left_over = pg.store.num_keys()
        assert left_over <= 2 * world_size + 2, left_over


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_calls(world_size: int, free_port: int) -> None:
    run_ranks(check_calls, world_size, port=free_port)


def check_deadlines(rank: int, world_size: int, port: int) -> None:
    pg = join(port, rank, world_size, timeout=20 * SECOND)
    pg.barrier()
    if rank == 0:
        pg.timeout = SECOND / 5
        calls: dict[str, Callable[[], object]] = {
            "barrier": pg.barrier,
            "recv_obj": lambda: pg.recv_obj(1),
            "broadcast_obj": lambda: pg.broadcast_obj(None, 1),
            "all_gather_obj": lambda: pg.all_gather_obj(1),
        }
        for name, call in calls.items():
            with fails(TimeoutError, name, "rank 0 of 2", "0.2 s", "rank 1"):
                call()
        pg.store.set("done", "")
        pg.store.wait(["seen"])
    else:
        pg.store.wait(["done"])
        pg.store.set("seen", "")


def test_every_wait_has_a_deadline(free_port: int) -> None:
    run_ranks(check_deadlines, 2, port=free_port)


def check_repeated(rank: int, world_size: int, port: int) -> None:
    """A call that timed out counts as not made, and one whose object cannot be sent, too."""
    pg = join(port, rank, world_size, timeout=20 * SECOND)
    calls: dict[str, Callable[[], object]] = {
        "broadcast_obj": lambda: pg.broadcast_obj("first" if rank else None, 1),
        "recv_obj": lambda: pg.send_obj("first", 0) if rank else pg.recv_obj(1),
        "all_gather_obj": lambda: pg.all_gather_obj("first")[1],
        "barrier": pg.barrier,
    }
    if rank == 0:
        pg.timeout = SECOND / 5
        for name, call in calls.items():
            with fails(TimeoutError, name):
                call()
        pg.timeout = 20 * SECOND
    else:
        pg.store.wait(["timed out"])
    pg.store.set("timed out", "")
    for call in calls.values():
        assert call() in ("first", None)
    assert pg.broadcast_obj("second" if rank else None, 1) == "second"
    for share in (
        lambda obj: pg.broadcast_obj(obj, rank),
        lambda obj: pg.send_obj(obj, 1 - rank),
        pg.all_gather_obj,
    ):
        with pytest.raises((AttributeError, pickle.PicklingError)):
            share(lambda: 0)
    assert pg.all_gather_obj(rank) == [0, 1]
    assert pg.broadcast_obj("third" if rank else None, 1) == "third"
    if rank:
        pg.send_obj("fourth", 0)
    else:
        assert pg.recv_obj(1) == "fourth"
    pg.barrier()


def test_a_call_may_be_repeated(free_port: int) -> None:
    run_ranks(check_repeated, 2, port=free_port)


def check_without_pidfd(rank: int, world_size: int, port: int) -> None:
    with mock.patch.object(os, "pidfd_open", side_effect=OSError(errno.ENOSYS, "no such call")):
        assert join(port, rank, world_size).all_gather_obj(rank) == [0, 1]


def test_a_kernel_without_pidfd(free_port: int) -> None:
    run_ranks(check_without_pidfd, 2, port=free_port)


def test_ranks_that_do_not_come(free_port: int) -> None:
    with pytest.raises(TimeoutError, match="rank 1"):
        join(free_port, 0, 2, timeout=SECOND / 2)
    with pytest.raises(ValueError, match="rank 2 is not in a group of 2"):
        join(free_port, 2, 2)


def test_it_listens_on_its_address_alone(free_port: int) -> None:
    pg = join(free_port, 0, 1)
    listening = [
        fields[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        if Path(table).exists()
        for fields in map(str.split, Path(table).read_text().splitlines()[1:])
        if fields[3] == "0A" and fields[1].endswith(f":{free_port:04X}")
    ]
    assert listening == [f"0100007F:{free_port:04X}"]
    del pg


def test_a_port_that_is_taken(free_port: int) -> None:
    first = join(free_port, 0, 1)
    with pytest.raises(OSError, match="in use"):
        join(free_port, 0, 1)
    del first


def test_unread_messages_expire() -> None:
    store = HashStore()
    pg = StatelessProcessGroup(0, 2, store, data_expiration_seconds=0, timeout=SECOND)
    pg.send_obj(1, 1)
    pg.send_obj(2, 1)
    assert store.num_keys() == 1


def test_threads_may_be_ranks(free_port: int) -> None:
    found: list[Any] = [None, None]

    def rank_main(rank: int) -> None:
        found[rank] = join(free_port, rank, 2).all_gather_obj(rank)

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[0, 1], [0, 1]]
