"""Futures of sends and receives, and works that are dropped: none waits for another."""

from __future__ import annotations

import datetime
import signal
import threading
import time
from pathlib import Path

import pytest
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


def check_callback_waits(rank: int, world_size: int) -> None:
    """A future's callback waits for its own work, for another future, and slowly."""
    if rank == 1:
        for tag in (1, 2, 3):
            dist.recv(torch.empty(1), 0, tag=10 + tag)
            dist.send(torch.full((1,), float(tag)), 0, tag=tag)
        return
    works = [begin(dist.irecv(torch.empty(1), 1, tag=tag)) for tag in (1, 2, 3)]
    futures = [work.get_future() for work in works]
    release = threading.Event()

    def wait_for_own(done: torch.futures.Future[list[torch.Tensor]]) -> float:
        works[0].wait()
        return done.value()[0].item()

    def wait_for_next(done: torch.futures.Future[list[torch.Tensor]]) -> float:
        dist.send(torch.ones(1), 1, tag=12)
        return done.value()[0].item() + futures[1].wait()[0].item()

    def wait_for_release(done: torch.futures.Future[list[torch.Tensor]]) -> float:
        assert release.wait(20)
        return done.value()[0].item()

    own, after_next = futures[0].then(wait_for_own), futures[0].then(wait_for_next)
    slow = futures[1].then(wait_for_release)
    dist.send(torch.ones(1), 1, tag=11)
    assert own.wait() == 1.0
    assert after_next.wait() == 3.0
    dist.send(torch.ones(1), 1, tag=13)
    assert futures[2].wait()[0].item() == 3.0, "beside a callback that has not returned"
    assert not slow.done()
    release.set()
    assert slow.wait() == 2.0


def test_a_callback_may_wait() -> None:
    run_ranks(check_callback_waits, 2)


def check_late_future(rank: int, world_size: int) -> str:
    """Nobody waits for a receive whose message never comes; its future says who did not send."""
    group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=1))
    said = ""
    if rank == 0:
        future = begin(dist.irecv(torch.empty(3), 1, group=group, tag=7)).get_future()
        with pytest.raises(RuntimeError) as caught:
            future.wait()
        said = str(caught.value)
    dist.barrier()
    return said


def test_a_future_past_its_deadline_names_the_peer() -> None:
    said = run_ranks(check_late_future, 2)[0]
    assert "recv(float32 x 3, tag 7) from rank 1 (pid " in said, said
    assert "waited 1.0 s of 1.0 s" in said, said
    assert "unfinished: rank 1" in said or "missing: rank 1" in said, said
    assert "arrived" not in said, said


def check_destroy_in_callback(rank: int, world_size: int) -> float:
    """A collective's callback destroys the group while a receive will never be answered."""
    begun = time.monotonic()
    if rank == 0:
        future = begin(dist.irecv(torch.empty(1), 1)).get_future()
        destroyed = begin(dist.all_reduce(torch.ones(1), async_op=True)).get_future()
        destroyed.then(lambda _: dist.destroy_process_group()).wait()
        with pytest.raises(RuntimeError):
            future.wait()
    else:
        dist.all_reduce(torch.ones(1))
        dist.destroy_process_group()
    return time.monotonic() - begun


def test_destroying_in_a_callback_does_not_wait_out_the_deadline() -> None:
    seconds = run_ranks(check_destroy_in_callback, 2)
    assert max(seconds) < 15, seconds  # of the 30 s and more that a call may take


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
