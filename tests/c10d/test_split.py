"""Groups split off a group: what torch.distributed.split_group asks of the backend.

torch's function itself wants a GPU before 2.15; `ProcessGroup.split_group` is what it calls.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

import gpu_fakes
from fresh import fresh_ranks
from gpu_fakes import Fakes, on_gpu
from harness import run_ranks
from rank_process import Control

HALF_A_MINUTE = timedelta(seconds=30)


def world() -> Any:
    return dist.group.WORLD


def options_of(group: Any) -> Any:
    """As torch.distributed hands them over: a copy of the parent's."""
    return group._get_backend(torch.device("cpu")).options.__deepcopy__({})


def split(parent: Any, ranks: list[int], name: str) -> Any:
    return parent.split_group(
        ranks, timeout=HALF_A_MINUTE, opts=options_of(parent), group_name=name, group_desc=name
    )


def sum_on(group: Any, x: torch.Tensor) -> torch.Tensor:
    group.allreduce([x]).wait()
    return x


def check_cpu(rank: int, world_size: int) -> None:
    assert world()._get_backend(torch.device("cpu")).supports_splitting
    mine = [0, 2] if rank in (0, 2) else [1]
    group = split(world(), mine, "half")
    assert (group.rank(), group.size()) == (mine.index(rank), len(mine))
    assert sum_on(group, torch.tensor([float(rank)])).item() == sum(mine)
    backend = group._get_backend(torch.device("cpu"))
    assert backend.options.global_ranks_in_group == mine
    assert backend.options._timeout == HALF_A_MINUTE
    # The parent goes on, and a group of a group knows the ranks of the world.
    assert sum_on(world(), torch.ones(1)).item() == world_size
    inner = split(group, [len(mine) - 1], "inner")
    assert (inner is None) == (rank != mine[-1])
    if inner is not None:
        assert inner._get_backend(torch.device("cpu")).options.global_ranks_in_group == [mine[-1]]


def test_a_group_is_split() -> None:
    run_ranks(check_cpu, 3)


def check_again(rank: int, world_size: int) -> None:
    """torch gives the same ranks the same name once the first of them is gone."""
    for _ in range(3):
        group = split(world(), [0, 1], "pair")
        assert (group is None) == (rank == 2)
        if group is not None:
            assert sum_on(group, torch.ones(1)).item() == 2
        del group
        gc.collect()


def test_a_name_may_come_again() -> None:
    run_ranks(check_again, 3)


def check_wrong(rank: int, world_size: int) -> None:
    backend = world()._get_backend(torch.device("cpu"))
    assert split(world(), [1 - rank], "the other") is None
    with pytest.raises(ValueError, match=r"no rank 7 to split off; the group has ranks 0 to 1"):
        split(world(), [rank, 7], "too many")
    assert not backend.get_error().value


def test_ranks_that_are_not_there() -> None:
    run_ranks(check_wrong, 2)


def check_torchs_own(rank: int, world_size: int) -> None:
    group = dist.split_group(split_ranks=[[0, 2], [1]], group_desc="half")
    assert sum_on(group, torch.tensor([float(rank)])).item() == (1 if rank == 1 else 2)
    x = torch.full((2,), rank)
    dist.all_reduce(x, group=group)
    assert x.tolist() == [1 if rank == 1 else 2] * 2
    dist.destroy_process_group(group)


@pytest.mark.skipif(torch.__version__ < "2.15", reason="split_group wants a GPU before torch 2.15")
def test_torch_distributed_split_group() -> None:
    run_ranks(check_torchs_own, 3)


@pytest.fixture
def folder() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as path:
        yield path


def both_devices(control: Control, fakes: Fakes, folder: str) -> list[float]:
    gpu_fakes.become_gpu_rank(fakes, folder)
    control.init()
    group = split(world(), [0, 1], "pair")
    cpu, gpu = (group._get_backend(torch.device(kind)) for kind in ("cpu", "cuda"))
    assert cpu is gpu, "one object serves both, as it does the parent"
    seen = [sum_on(group, torch.ones(1)).item(), sum_on(group, on_gpu(torch.ones(1))).cpu().item()]
    # Its GPU is connected apart from the parent's.
    dist.all_reduce(x := on_gpu(torch.full((1,), 2.0)))
    return [*seen, x.cpu().item()]


def test_a_split_group_serves_both_devices(folder: str) -> None:
    with fresh_ranks(both_devices, 2, fakes=gpu_fakes.built(), folder=folder) as ranks:
        for outcome in ranks.outcomes(within=60):
            assert outcome.report is not None, str(outcome)
            assert outcome.report.value == [2.0, 2.0, 4.0], str(outcome)
