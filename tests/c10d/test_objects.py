"""Object collectives: Python objects of all sizes through every one of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from harness import run_ranks


def thing(rank: int) -> Any:
    """Another length on each rank, from a few bytes to more than a megabyte."""
    return {"rank": rank, "text": "x" * (rank * 400_000), "nested": [None, (rank, 1.5)]}


def check_objects(rank: int, world_size: int) -> None:
    everything = [thing(r) for r in range(world_size)]
    root = world_size - 1

    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, thing(rank))
    assert gathered == everything

    objects = everything if rank == root else [None] * world_size
    dist.broadcast_object_list(objects, src=root)
    assert objects == everything

    at_root: list[Any] | None = [None] * world_size if rank == root else None
    dist.gather_object(thing(rank), at_root, dst=root)
    assert at_root == (everything if rank == root else None)

    received: list[Any] = [None]
    dist.scatter_object_list(received, everything if rank == root else None, src=root)
    assert received == [thing(rank)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_object_collectives(world_size: int) -> None:
    run_ranks(check_objects, world_size)


def check_send_objects(rank: int, world_size: int) -> None:
    wanted = [thing(1), "text", None]
    if rank == 0:
        dist.send_object_list(wanted, dst=1)
    else:
        received: list[Any] = [None] * len(wanted)
        dist.recv_object_list(received, src=0)
        assert received == wanted


def test_objects_through_send_and_recv() -> None:
    run_ranks(check_send_objects, 2)
