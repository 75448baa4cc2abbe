"""Futures of sends and receives, and works that are dropped: none waits for another."""

from __future__ import annotations

import signal
from pathlib import Path

import torch
import torch.distributed as dist

from harness import run_ranks


def begin(work: dist.Work | None) -> dist.Work:
    assert work is not None
    return work


def check_chain(rank: int, world_size: int) -> None:
    """The first receive is answered only after the second one's future has run its callback."""
    if rank == 1:
        go = torch.empty(1)
        dist.send(torch.full((1,), 2.0), 0, tag=2)
        dist.recv(go, 0, tag=3)
        dist.send(torch.full((1,), go.item() + 1.0), 0, tag=1)
        return
    first, second = torch.empty(1), torch.empty(1)
    first_future = begin(dist.irecv(first, 1, tag=1)).get_future()
    second_future = begin(dist.irecv(second, 1, tag=2)).get_future()
    second_future.then(lambda done: dist.isend(done.value()[0] * 10.0, 1, tag=3))
    (value,) = first_future.wait()
    assert value.item() == 21.0
    assert second.item() == 2.0


def test_a_future_does_not_wait_for_one_asked_for_before() -> None:
    run_ranks(check_chain, 2)


def check_many(rank: int, world_size: int) -> None:
    count = 300
    if rank == 1:
        for tag in reversed(range(count)):
            dist.send(torch.full((1 + tag * 50,), float(tag)), 0, tag=tag)
        return
    tensors = [torch.empty(1 + tag * 50) for tag in range(count)]
    futures = [
        begin(dist.irecv(tensor, 1, tag=tag)).get_future() for tag, tensor in enumerate(tensors)
    ]
    for tag, future in enumerate(futures):
        (value,) = future.wait()
        assert (value == float(tag)).all(), tag


def test_hundreds_of_futures_answered_in_reverse() -> None:
    run_ranks(check_many, 2)


def check_dropped(rank: int, world_size: int) -> None:
    """Rank 0 keeps no work; its memory must live until the last byte has gone."""
    if rank == 0:
        for tag in range(40):
            dist.isend(torch.full((1 + tag * 5000,), float(tag)), 1, tag=tag)
        dist.barrier()
    else:
        for tag in reversed(range(40)):
            tensor = torch.empty(1 + tag * 5000)
            dist.recv(tensor, 0, tag=tag)
            assert (tensor == float(tag)).all(), tag
        dist.barrier()


def test_dropped_sends_arrive_whatever_the_order() -> None:
    run_ranks(check_dropped, 2)


def blocked_signals() -> dict[str, set[int]]:
    """Of each thread of the library: the signals it does not take."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        (mask,) = [
            line.split()[1]
            for line in (task / "status").read_text().splitlines()
            if line.startswith("SigBlk:")
        ]
        if name.startswith("fastvideo-"):
            found[name] = {n for n in range(1, 65) if int(mask, 16) >> (n - 1) & 1}
    return found


def check_threads(rank: int, world_size: int) -> None:
    other = 1 - rank
    received = torch.empty(200_000)
    future = begin(dist.irecv(received, other)).get_future()
    total = dist.all_reduce(torch.ones(1), async_op=True)
    assert total is not None
    total.wait()
    threads = blocked_signals()
    assert {"fastvideo-calls", "fastvideo-aside", "fastvideo-mail"} <= set(threads), threads
    for name, blocked in threads.items():
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1} <= blocked, (name, blocked)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []), "the caller's own"
    dist.send(torch.ones(200_000), other)
    future.wait()


def test_own_threads_take_no_signals() -> None:
    run_ranks(check_threads, 2)
