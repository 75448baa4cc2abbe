"""What FastVideo's code does with the layer beyond calling it, and what broke there."""

from __future__ import annotations

import types

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ReduceOp, Work

from c10d import cases
from fastvideo_dist import communication_op as co
from fastvideo_dist import parallel_state as ps
from harness import run_ranks
from layer.jobs import job

WORLDS = pytest.mark.parametrize("world_size", [1, 2, 3, 4])


def check_weight_loading(rank: int, world_size: int) -> None:
    """Many asynchronous broadcasts from the node's first rank are under way at once."""
    with job(rank, world_size):
        assert ps._NODE is not None
        group = ps.get_node_group().device_group
        source = dist.get_global_rank(group, 0)
        under_way: list[tuple[Work, Tensor, Tensor]] = []
        for number in range(40):
            dtype = cases.MOVED[number % len(cases.MOVED)]
            wanted = cases.make(number, (1 + number * 97, 3), dtype)
            weight = wanted.clone() if rank == source else torch.empty_like(wanted)
            work = dist.broadcast(weight, src=source, async_op=True, group=group)
            assert work is not None
            under_way.append((work, weight, wanted))
        for work, weight, wanted in under_way:
            work.wait()
            cases.same_bits(weight, wanted, wanted.dtype)


@WORLDS
def test_weights_are_broadcast_as_fastvideo_loads_them(world_size: int) -> None:
    run_ranks(check_weight_loading, world_size)


def check_many_gathers(rank: int, world_size: int) -> None:
    """On Gloo there, 38 of 60 such calls raised and 22 lost the gradient."""
    with job(rank, world_size):
        group = ps.get_sp_group()
        for number in range(60):
            x = torch.full((2, 3), float(rank), requires_grad=True)
            y = group.all_gather(x, dim=0)
            (y * (number + 1)).sum().backward()
            assert x.grad is not None
            assert (x.grad == (number + 1) * world_size).all()


@WORLDS
def test_every_gather_has_its_gradient(world_size: int) -> None:
    run_ranks(check_many_gathers, world_size)


def check_strided_reduction(rank: int, world_size: int) -> None:
    """There a strided slice was reduced wrongly, in place, and its gradient was not reduced."""
    with job(rank, world_size):
        group = ps.get_world_group()
        base = torch.arange(24.0).view(4, 6) * (rank + 1)
        base.requires_grad_()
        mean = group.all_reduce(base[:, ::2], op=ReduceOp.AVG)
        wanted = torch.arange(24.0).view(4, 6)[:, ::2] * (world_size + 1) / 2
        torch.testing.assert_close(mean, wanted)
        mean.sum().backward()
        assert base.grad is not None
        torch.testing.assert_close(base.grad[:, ::2], torch.ones(4, 3))
        assert not base.grad[:, 1::2].any()
        loss = torch.tensor(float(rank))
        group.all_reduce(loss, op=ReduceOp.AVG)
        assert loss.item() == rank, "FastVideo's trainers must use the result"


@WORLDS
def test_a_strided_slice_is_reduced_with_its_gradient(world_size: int) -> None:
    run_ranks(check_strided_reduction, world_size)


def test_a_stand_in_needs_only_what_fastvideo_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parity tests of Flux2 and SD3.5 assign groups that do nothing."""
    nothing = types.SimpleNamespace(
        world_size=1,
        rank_in_group=0,
        all_reduce=lambda x: x,
        all_gather=lambda x, dim: x,
        all_to_all_4D=lambda x, scatter_dim, gather_dim: x,
        shard=lambda x, dim, scale_grad: x,
    )
    for name in ("_WORLD", "_TP", "_SP", "_DP"):
        monkeypatch.setattr(ps, name, nothing)
    x = torch.ones(1, 4, 2, 3)
    assert co.sequence_model_parallel_all_to_all_4D(x, scatter_dim=2, gather_dim=1) is x
    assert co.sequence_model_parallel_shard(x, dim=1) == (x, 4)
    assert co.sequence_model_parallel_all_gather(x, dim=1) is x
    assert co.sequence_model_parallel_all_gather_with_unpad(x, 4, dim=1) is x
    assert co.tensor_model_parallel_all_reduce(x) is x
    assert co.tensor_model_parallel_all_gather(x) is x
    assert ps.get_sp_world_size() == 1
