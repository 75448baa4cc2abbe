"""barrier: nobody leaves before everybody has come."""

from __future__ import annotations

import pathlib
import time

import pytest
import torch.distributed as dist

from c10d import cases
from harness import run_ranks


def check_order(rank: int, world_size: int, directory: str) -> None:
    for turn in range(20):
        late = turn % world_size
        mark = pathlib.Path(directory) / f"{world_size}-{turn}"
        if rank == late:
            # The others have time to leave too early; without that a broken barrier passes.
            time.sleep(0.01)
            mark.touch()
        dist.barrier()
        assert mark.exists(), f"turn {turn}: rank {rank} left before rank {late} came"


@pytest.mark.parametrize("world_size", cases.WORLD_SIZES)
def test_nobody_leaves_before_the_last_has_come(world_size: int, tmp_path: pathlib.Path) -> None:
    run_ranks(check_order, world_size, directory=str(tmp_path))


def check_many(rank: int, world_size: int) -> None:
    for _ in range(500):
        dist.barrier()
    work = dist.barrier(async_op=True)
    assert work is not None
    work.wait()
    assert work.is_completed()


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_many_barriers(world_size: int) -> None:
    run_ranks(check_many, world_size)
