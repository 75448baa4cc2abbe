"""send, recv and group(): any order, oneself, several communicators, and groups that fail."""

from __future__ import annotations

import numpy as np
import pytest
import torch.distributed as dist

from face.jobs import WORLD_SIZES, connect, refused
from fastvideo_dist import nccl
from harness import run_ranks


def check_ring(rank: int, world_size: int, count: int) -> None:
    with connect(rank, world_size) as comm:
        right, left = (rank + 1) % world_size, (rank - 1) % world_size
        out = np.zeros(count)
        with nccl.group():
            comm.send(np.full(count, float(rank)), right)
            comm.recv(out, left)
            assert (out == 0).all(), "nothing is done before the end of the group"
        assert (out == left).all()


@pytest.mark.parametrize("count", [1, 3_000_000])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_ring(world_size: int, count: int) -> None:
    run_ranks(check_ring, world_size, count=count)


def check_all_pairs(rank: int, world_size: int) -> None:
    """An all-to-all of sends and receives, with oneself too, two messages each, in odd orders."""
    with connect(rank, world_size) as comm:
        inbox = np.zeros((2, world_size, 5))
        with nccl.group():
            for peer in reversed(range(world_size)):
                comm.send(np.full(5, 10.0 * rank + peer), peer)
            for peer in range(world_size):
                comm.recv(inbox[0, peer], peer)
                comm.send(np.full(5, 100.0 + rank), peer)
                comm.recv(inbox[1, peer], peer)
        for peer in range(world_size):
            assert (inbox[0, peer] == 10 * peer + rank).all()
            assert (inbox[1, peer] == 100 + peer).all()


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_all_pairs(world_size: int) -> None:
    run_ranks(check_all_pairs, world_size)


def check_plain(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        x = np.arange(1_000_000.0)
        for _ in range(3):
            if rank == 0:
                comm.send(x, 1)
            else:
                out = np.zeros_like(x)
                comm.recv(out, 0)
                assert np.array_equal(out, x)


def test_without_a_group() -> None:
    run_ranks(check_plain, 2)


def check_mixed(rank: int, world_size: int) -> None:
    """Collectives of two communicators, in another order on each rank, and a message."""
    with connect(rank, world_size) as first, connect(rank, world_size) as second:
        a, b, c, d = np.ones(3), np.ones(4), np.zeros(world_size), np.zeros(2)
        calls = [
            lambda: first.allreduce(a, a, nccl.SUM),
            lambda: second.allreduce(b, b, nccl.SUM),
        ]
        nccl.group_start()
        for call in calls if rank % 2 else reversed(calls):
            call()
        nccl.group_start()  # nested
        first.allgather(np.full(1, float(rank)), c)
        (first.send if rank == 0 else first.recv)(d if rank else np.full(2, 5.0), 1 - rank)
        nccl.group_end()
        assert (a == 1).all()
        nccl.group_end()
        assert (a == world_size).all()
        assert (b == world_size).all()
        assert c.tolist() == list(range(world_size))
        assert d.tolist() == ([5, 5] if rank else [0, 0])


def test_collectives_in_a_group() -> None:
    run_ranks(check_mixed, 2)


def check_failing(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        x = np.ones(2)

        def inner() -> None:
            with nccl.group():
                comm.allreduce(x, x, nccl.SUM)
                raise ArithmeticError

        def outer() -> None:
            with nccl.group():
                comm.allreduce(x, x, nccl.SUM)
                comm.send(x, 7)

        with nccl.group():
            comm.allreduce(x, x, nccl.SUM)
            with pytest.raises(ArithmeticError):
                inner()
            refused(lambda: comm.allreduce(x, np.ones(1), nccl.SUM), "count mismatch")
        assert (x == world_size).all(), "the inner group was not given up"
        refused(outer, "peer 7 is no rank")
        refused(nccl.group_end, "there is no open group; call group_start first")
        assert (x == world_size).all()
        comm.allreduce(x, x, nccl.SUM)


def test_a_group_that_raises_makes_no_call() -> None:
    run_ranks(check_failing, 2)


def check_oneself(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:

        def unmatched() -> None:
            with nccl.group():
                comm.send(np.ones(2), rank)

        def unequal() -> None:
            with nccl.group():
                comm.send(np.ones(2), rank)
                comm.recv(np.ones(3), rank)

        refused(unmatched, f"rank {rank} sends 1 messages to itself and receives 0")
        refused(unequal, f"rank {rank} sends itself float64 x 2 and receives float64 x 3")
        comm.allreduce(np.ones(1), np.ones(1), nccl.SUM)


def test_messages_to_oneself_must_match() -> None:
    run_ranks(check_oneself, 2)


def check_destroyed(rank: int, world_size: int) -> None:
    comm = connect(rank, world_size)

    def leave() -> None:
        with nccl.group():
            comm.allreduce(np.ones(1), np.ones(1), nccl.SUM)
            comm.destroy()

    with pytest.raises(dist.DistBackendError, match="was destroyed"):
        leave()


def test_a_communicator_destroyed_in_a_group() -> None:
    run_ranks(check_destroyed, 2)
