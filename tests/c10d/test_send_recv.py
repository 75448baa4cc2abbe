"""send and recv: order, tags, any source, and progress beside collectives."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from c10d import cases
from harness import run_ranks

LARGE = 6_000_000  # elements of float32: far above any buffer


def check_ring(rank: int, world_size: int) -> None:
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    payloads = [(dtype, 1003) for dtype in cases.MOVED]
    payloads += [(torch.uint8, count) for count in cases.counts(1)]
    for dtype, count in payloads:
        sent = dist.isend(cases.make(rank, count, dtype, seed=count), right)
        received = torch.empty(count, dtype=dtype)
        assert dist.recv(received, left) == left
        assert sent is not None
        sent.wait()
        cases.same_bits(received, cases.make(left, count, dtype, seed=count), (dtype, count))


@pytest.mark.parametrize("world_size", [2, 3, 4, 5])
def test_every_dtype_and_size_around_a_ring(world_size: int) -> None:
    run_ranks(check_ring, world_size)


def check_blocking(rank: int, world_size: int) -> None:
    for count in (0, 1, 1000, 100_000, LARGE):
        if rank == 0:
            dist.send(torch.full((count,), 1.0), 1)
            answer = torch.empty(count)
            dist.recv(answer, 1)
            assert (answer == 2.0).all()
        else:
            question = torch.empty(count)
            dist.recv(question, 0)
            dist.send(question + 1.0, 0)


def test_blocking_ping_pong() -> None:
    run_ranks(check_blocking, 2)


def check_tags(rank: int, world_size: int, count: int) -> None:
    tags = [5, 3, 2**31 - 1, 0]
    if rank == 0:
        works = [dist.isend(torch.full((count,), float(t)), 1, tag=t) for t in tags]
        for work in works:
            assert work is not None
            work.wait()
    else:
        for tag in sorted(tags):
            tensor = torch.empty(count)
            dist.recv(tensor, 0, tag=tag)
            assert (tensor == float(tag)).all(), f"tag {tag} brought {tensor[0]}"


@pytest.mark.parametrize("count", [1, 100_000])
def test_tags_are_received_in_another_order_than_sent(count: int) -> None:
    run_ranks(check_tags, 2, count=count)


def check_first_in_first_out(rank: int, world_size: int) -> None:
    counts = [1 + (number * 7919) % 30_000 for number in range(60)]
    if rank == 0:
        works = [dist.isend(torch.full((n,), float(i)), 1) for i, n in enumerate(counts)]
        for work in works:
            assert work is not None
            work.wait()
    else:
        tensors = [torch.empty(count) for count in counts]
        works = [dist.irecv(tensor, 0) for tensor in tensors]
        for number, (work, tensor) in enumerate(zip(works, tensors, strict=True)):
            assert work is not None
            work.wait()
            assert (tensor == float(number)).all(), f"message {number} brought {tensor[0]}"


def test_equal_tags_arrive_in_the_order_sent() -> None:
    run_ranks(check_first_in_first_out, 2)


def check_any_source(rank: int, world_size: int) -> list[int]:
    if rank != 0:
        for count in (3, 200_000):
            dist.send(torch.full((count,), float(rank)), 0, tag=count)
        return []
    senders = []
    for count in (3, 200_000):
        for _ in range(1, world_size):
            tensor = torch.empty(count)
            sender = dist.recv(tensor, tag=count)
            assert (tensor == float(sender)).all(), f"from {sender}: {tensor[0]}"
            senders.append(sender)
    return senders


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_source_names_the_sender(world_size: int) -> None:
    senders = run_ranks(check_any_source, world_size)[0]
    others = list(range(1, world_size))
    half = len(others)
    assert sorted(senders[:half]) == others
    assert sorted(senders[half:]) == others


def check_recv_posted_before_collective(rank: int, world_size: int, count: int) -> None:
    for turn in range(5):
        total = torch.ones(count)
        if rank == 0:
            received = torch.empty(count)
            work = dist.irecv(received, 1)
            dist.all_reduce(total)
            assert work is not None
            work.wait()
            assert (received == float(turn)).all()
        else:
            dist.all_reduce(total)
            dist.send(torch.full((count,), float(turn)), 0)
        assert (total == 2.0).all()


@pytest.mark.parametrize("count", [1, 300_000])
def test_irecv_does_not_hold_up_a_collective(count: int) -> None:
    run_ranks(check_recv_posted_before_collective, 2, count=count)


def check_send_posted_before_collective(rank: int, world_size: int, count: int) -> None:
    total = torch.ones(count)
    if rank == 0:
        work = dist.isend(torch.full((count,), 7.0), 1)
        dist.all_reduce(total)
        assert work is not None
        work.wait()
    else:
        dist.all_reduce(total)
        received = torch.empty(count)
        dist.recv(received, 0)
        assert (received == 7.0).all()
    assert (total == 2.0).all()


@pytest.mark.parametrize("count", [1, LARGE])
def test_isend_does_not_hold_up_a_collective(count: int) -> None:
    run_ranks(check_send_posted_before_collective, 2, count=count)


def check_async_collective_between(rank: int, world_size: int) -> None:
    """An all_reduce queued first, which cannot end before the message has gone through."""
    total, message = torch.ones(300_000), torch.full((300_000,), 3.0)
    if rank == 0:
        pending = dist.all_reduce(total, async_op=True)
        dist.send(message, 1)
        pending.wait()
    else:
        received = torch.empty_like(message)
        dist.recv(received, 0)
        dist.all_reduce(total)
        cases.same_bits(received, message, "message")
    assert (total == 2.0).all()


def test_a_message_passes_a_queued_collective() -> None:
    run_ranks(check_async_collective_between, 2)


def check_both_send_first(rank: int, world_size: int) -> None:
    peers = [peer for peer in range(world_size) if peer != rank]
    mine = torch.full((LARGE,), float(rank))
    sends = [dist.isend(mine, peer) for peer in peers]
    for peer in peers:
        received = torch.empty(LARGE)
        dist.recv(received, peer)
        assert (received == float(peer)).all()
    for work in sends:
        assert work is not None
        work.wait()


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_send_large_tensors_before_receiving(world_size: int) -> None:
    run_ranks(check_both_send_first, world_size)


def check_batch(rank: int, world_size: int) -> None:
    right, left = (rank + 1) % world_size, (rank - 1) % world_size
    for count in (1, 1000, 700_000):
        mine, received = torch.full((count,), float(rank)), torch.empty(count)
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, mine, right), dist.P2POp(dist.irecv, received, left)]
        )
        for work in works:
            work.wait()
        assert (received == float(left)).all()


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_batch_isend_irecv(world_size: int) -> None:
    run_ranks(check_batch, world_size)


def check_layouts(rank: int, world_size: int) -> None:
    def transposed(tensor: Tensor) -> Tensor:
        return tensor.t().contiguous().t()

    wanted = cases.make(0, (40_001, 3), torch.float32)
    for layout in (cases.holed, cases.shifted, transposed):
        tensor = layout(wanted if rank == 0 else torch.zeros_like(wanted))
        if rank == 0:
            dist.send(tensor, 1)
        else:
            dist.recv(tensor, 0)
            cases.same_bits(tensor, wanted, tensor.stride())


def test_strided_and_unaligned_tensors() -> None:
    run_ranks(check_layouts, 2)


def check_threads(rank: int, world_size: int) -> None:
    """One thread receives while another sends, on one group."""
    peer, failures = 1 - rank, []

    def receive() -> None:
        for number in range(100):
            tensor = torch.empty(1 + number * 97)
            dist.recv(tensor, peer, tag=1)
            if not (tensor == float(number)).all():
                failures.append(number)

    thread = threading.Thread(target=receive)
    thread.start()
    for number in range(100):
        dist.send(torch.full((1 + number * 97,), float(number)), peer, tag=1)
    thread.join()
    assert not failures, f"messages {failures} were wrong"


def test_a_thread_receives_while_another_sends() -> None:
    run_ranks(check_threads, 2)


def check_completion(rank: int, world_size: int) -> None:
    if rank == 0:
        received = torch.empty(1000)
        work = dist.irecv(received, 1)
        assert work is not None
        assert not work.is_completed(), "nothing has been sent yet"
        dist.barrier()
        work.wait()
        assert work.is_completed()
        assert (received == 5.0).all()
    else:
        dist.barrier()
        dist.send(torch.full((1000,), 5.0), 0)


def test_irecv_is_completed_only_when_the_message_is_there() -> None:
    run_ranks(check_completion, 2)
