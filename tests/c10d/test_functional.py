"""Functional collectives: what torch.compile, DTensor and FSDP call."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import reference
from c10d import cases
from harness import run_ranks


def check(rank: int, world_size: int) -> None:
    group = dist.distributed_c10d._get_default_group()
    inputs = cases.all_inputs(world_size, (world_size * 2, 3000), torch.float32)
    mine = inputs[rank]

    total = functional.all_reduce(mine, "sum", group)
    cases.reduced(total + 0, reference.all_reduce(inputs), "all_reduce")
    gathered = functional.all_gather_tensor(mine, 0, group)
    cases.same_bits(gathered + 0, torch.cat(inputs) + 0, "all_gather_tensor")
    part = functional.reduce_scatter_tensor(mine, "avg", 0, group)
    wanted = reference.all_reduce([each.chunk(world_size)[rank] for each in inputs], "AVG")
    cases.reduced(part + 0, wanted, "reduce_scatter_tensor")
    exchanged = functional.all_to_all_single(mine, None, None, group)
    cases.same_bits(exchanged + 0, reference.all_to_all_single(inputs)[rank], "all_to_all_single")
    cases.same_bits(mine, cases.make(rank, mine.shape, torch.float32), "the input is untouched")


def test_functional_collectives() -> None:
    for world_size in (1, 2, 3):
        run_ranks(check, world_size)
