"""Names: those of coordinators, and those of the package."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch.distributed import DistBackendError

import fastvideo_dist
from fastvideo_dist import parallel_state as ps
from harness import run_ranks
from layer.jobs import fails, job


def check_names(rank: int, world_size: int) -> None:
    """The same on all ranks, though destroying is local and not every rank is in every group."""
    everyone = [list(range(world_size))]

    def make(name: str, ranks: list[list[int]] = everyone) -> ps.GroupCoordinator:
        return ps.init_model_parallel_group(ranks, 0, "nccl", group_name=name)

    with job(rank, world_size):
        for early in (rank == 0, rank != 0):
            first = make("early")
            if early:
                first.destroy()
            second = make("early")
            if not early:
                first.destroy()
            assert (second.broadcast(torch.ones(2)) == 1).all()
            second.destroy()
        if rank == 2:
            with fails(ValueError, "in none"):
                make("few", [[0, 1]])
        else:
            make("few", [[0, 1]])
        for number in (1, 2):
            all_of_them = make("few")
            assert all_of_them.unique_name == f"few:{number}"
            assert all_of_them.broadcast_object(rank) == 0
            assert (all_of_them.broadcast(torch.ones(2)) == 1).all()


def test_names_are_the_same_on_all_ranks() -> None:
    run_ranks(check_names, 3)


def test_names_of_the_package_are_looked_up_once() -> None:
    assert fastvideo_dist.get_sp_group is ps.get_sp_group
    assert vars(fastvideo_dist)["get_sp_group"] is ps.get_sp_group


def test_modules_are_attributes_of_the_package() -> None:
    names = "communication_op, message_queue, ops, parallel_state, utils"
    script = f"import fastvideo_dist as f; print([f.{names.replace(', ', ', f.')}])"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=90)


def check_named(rank: int, world_size: int) -> None:
    with job(rank, world_size):
        group = ps.init_model_parallel_group([[0, 1], [2]], 0, "nccl", group_name="pair")
        if rank < 2:
            with fails(DistBackendError, 'group "pair:0 (', f"rank {rank} of 2"):
                group.all_reduce(torch.ones(4 + rank))


def test_the_transport_names_the_coordinator_a_group_was_made_for() -> None:
    run_ranks(check_named, 3)
