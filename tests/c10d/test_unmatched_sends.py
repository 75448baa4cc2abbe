"""Sends nobody has asked for yet hold up no other: not of another tag, not to another rank."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from harness import run_ranks


def wait_all(works: list[dist.Work | None]) -> None:
    for work in works:
        assert work is not None
        work.wait()


def receive(count: int, value: int, source: int | None, tag: int = 0) -> int:
    tensor = torch.empty(count)
    sender = dist.recv(tensor, source, tag=tag)
    assert (tensor == float(value)).all(), f"tag {tag} from {sender} brought {tensor[0]}"
    return sender


def check_tags_in_reverse(rank: int, world_size: int, count: int, tags: int) -> None:
    if rank == 0:
        wait_all([dist.isend(torch.full((count,), float(t)), 1, tag=t) for t in range(tags)])
    else:
        for tag in reversed(range(tags)):
            receive(count, tag, 0, tag)


@pytest.mark.parametrize(("count", "tags"), [(1, 17), (1, 100), (3000, 100), (100_000, 100)])
def test_tags_in_reverse(count: int, tags: int) -> None:
    run_ranks(check_tags_in_reverse, 2, count=count, tags=tags)


def check_thousands(rank: int, world_size: int) -> None:
    numbers = range(5000)
    if rank == 0:
        works = [dist.isend(torch.full((5,), float(n)), 1, tag=n % 3) for n in numbers]
        dist.barrier()  # only now does the other rank begin to receive
        wait_all(works)
    else:
        dist.barrier()
        for tag in (2, 0, 1):
            for number in numbers[tag::3]:
                receive(5, number, 0, tag)


def test_thousands_of_sends_before_the_first_receive() -> None:
    run_ranks(check_thousands, 2)


def check_three_ranks(rank: int, world_size: int, count: int) -> None:
    """Rank 1 takes rank 0's messages only after rank 2 has got one, sent after all of them."""
    if rank == 0:
        works = [dist.isend(torch.full((count,), float(n)), 1) for n in range(50)]
        works.append(dist.isend(torch.full((count,), 7.0), 2))
        wait_all(works)
    elif rank == 1:
        receive(count, 8, 2)
        for number in range(50):
            receive(count, number, 0)
    else:
        receive(count, 7, 0)
        dist.send(torch.full((count,), 8.0), 1)


@pytest.mark.parametrize("count", [1, 100_000])
def test_sends_to_one_rank_do_not_hold_up_those_to_another(count: int) -> None:
    run_ranks(check_three_ranks, 3, count=count)


def check_any_source(rank: int, world_size: int, count: int) -> list[int]:
    each = 40
    if rank != 0:
        tensor = torch.full((count,), float(rank))
        works = [dist.isend(tensor, 0, tag=tag) for tag in (1, 0) for _ in range(each)]
        dist.barrier()
        wait_all(works)
        return []
    dist.barrier()
    senders = []
    for tag in (0, 1):
        for _ in range(each * (world_size - 1)):
            tensor = torch.empty(count)
            senders.append(dist.recv(tensor, tag=tag))
            assert (tensor == float(senders[-1])).all(), (tag, senders)
    return senders


@pytest.mark.parametrize("count", [1, 20_000])
def test_any_source_gets_each_of_them_once(count: int) -> None:
    senders = run_ranks(check_any_source, 3, count=count)[0]
    assert sorted(senders) == [1] * 80 + [2] * 80


def check_all_to_all_at_once(rank: int, world_size: int) -> None:
    peers = [peer for peer in range(world_size) if peer != rank]
    counts = [1 + (number * 7919) % 20_000 for number in range(200)]
    works = [
        dist.isend(torch.full((count,), float(rank)), peer, tag=number)
        for number, count in enumerate(counts)
        for peer in peers
    ]
    for peer in reversed(peers):
        for number in reversed(range(len(counts))):
            receive(counts[number], peer, peer, number)
    wait_all(works)


def test_all_send_hundreds_to_all_before_they_receive_in_reverse() -> None:
    run_ranks(check_all_to_all_at_once, 3)
