"""TORCH_DISTRIBUTED_DEBUG=DETAIL: torch puts a wrapper of its own around the backend."""

from __future__ import annotations

import torch
import torch.distributed as dist

from fastvideo_dist.ops import all_to_all_4d
from fresh import fresh_ranks
from rank_process import Control


def use_wrapped(control: Control) -> None:
    dist.set_debug_level(dist.DebugLevel.DETAIL)
    control.init()
    rank, world_size = control.rank, control.world_size
    backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    assert type(backend).__name__ == "_ProcessGroupWrapper", type(backend)
    tensor = torch.full((5,), float(rank + 1))
    dist.all_reduce(tensor)
    assert tensor.tolist() == [world_size * (world_size + 1) / 2] * 5
    whole = torch.arange(2.0 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    mine = whole.tensor_split(world_size, dim=1)[rank]
    heads = all_to_all_4d(mine, scatter_dim=2, gather_dim=1)
    assert torch.equal(heads, whole.tensor_split(world_size, dim=2)[rank])
    pair = dist.new_group([0, 1])
    received = torch.empty(2)
    work = dist.isend(torch.full((2,), float(rank)), 1 - rank, group=pair)
    dist.recv(received, 1 - rank, group=pair)
    assert work is not None
    work.wait()
    assert received.tolist() == [1.0 - rank] * 2
    dist.destroy_process_group()


def test_the_wrapped_backend_does_the_same() -> None:
    with fresh_ranks(use_wrapped, 2) as ranks:
        for outcome in ranks.outcomes(within=60):
            assert not outcome.raised, outcome
            assert outcome.exitcode == 0, outcome
