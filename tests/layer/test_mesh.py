"""torch's own layers on the coordinators' groups: DeviceMesh, DTensor, FSDP2, every c10d call."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from c10d import cases
from fastvideo_dist import parallel_state as ps
from harness import run_ranks
from layer.jobs import job

STEPS = 3


def model() -> nn.Sequential:
    torch.manual_seed(3)
    # 7 and 5 are no multiples of the ranks: FSDP2 then pads its parts.
    return nn.Sequential(nn.Linear(6, 7), nn.GELU(), nn.Linear(7, 5)).double()


def data(part: int) -> Tensor:
    return cases.make(part, (4, 6), torch.float64)


def train(net: nn.Module, inputs: list[Tensor]) -> list[float]:
    """Losses of some steps; several inputs are one batch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = torch.stack([net(x).square().mean() for x in inputs]).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


MESHES: dict[str, Callable[[int], DeviceMesh]] = {
    "from_group, device_group": lambda _: DeviceMesh.from_group(
        ps.get_sp_group().device_group, "cpu"
    ),
    "from_group, cpu_group": lambda _: DeviceMesh.from_group(ps.get_sp_group().cpu_group, "cpu"),
    "init_device_mesh": lambda world_size: init_device_mesh("cpu", (world_size,)),
    "ranks": lambda _: DeviceMesh("cpu", ps.get_sp_group().ranks),
}


def check_fully_shard(rank: int, world_size: int, mesh: str, sp: int | None) -> None:
    with job(rank, world_size, sp=sp):
        net = model()
        made = MESHES[mesh](world_size)
        for layer in (net[0], net[2], net):
            fully_shard(layer, mesh=made)
        losses = train(net, [data(made.get_local_rank())])
        whole = model()
        wanted = train(whole, [data(part) for part in range(made.size())])
        mean = torch.tensor(losses, dtype=torch.float64)
        dist.all_reduce(mean, op=dist.ReduceOp.AVG, group=made.get_group())
        torch.testing.assert_close(mean.tolist(), wanted)
        for name, parameter in net.named_parameters():
            assert isinstance(parameter, DTensor)
            assert isinstance(parameter.grad, DTensor)
            torch.testing.assert_close(parameter.full_tensor(), whole.get_parameter(name).data)
            torch.testing.assert_close(parameter.grad.full_tensor(), whole.get_parameter(name).grad)


@pytest.mark.parametrize("mesh", MESHES)
def test_fsdp2_trains_as_one_process_does(mesh: str) -> None:
    run_ranks(check_fully_shard, 3, mesh=mesh, sp=None)


def test_fsdp2_on_groups_that_are_not_the_world() -> None:
    run_ranks(check_fully_shard, 4, mesh="from_group, device_group", sp=2)


def check_hybrid(rank: int, world_size: int) -> None:
    """Replicas of shards, as FastVideo's HSDP loads its models, and DTensor over the same mesh."""
    with job(rank, world_size, sp=2):
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        net = model()
        fully_shard(net, mesh=mesh)
        losses = torch.tensor(train(net, [data(rank)]), dtype=torch.float64)
        dist.all_reduce(losses, op=dist.ReduceOp.AVG)
        whole = model()
        torch.testing.assert_close(losses.tolist(), train(whole, [data(r) for r in range(4)]))
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(parameter.full_tensor(), whole.get_parameter(name).data)
        x = cases.make(0, (5, 6), torch.float64)
        rows = distribute_tensor(x, mesh["shard"], [Shard(0)])
        columns = rows.redistribute(mesh["shard"], [Shard(1)])
        assert torch.equal(columns.redistribute(mesh["shard"], [Replicate()]).to_local(), x)
        product = rows @ distribute_tensor(x.T.contiguous(), mesh["shard"], [Replicate()])
        torch.testing.assert_close(product.full_tensor(), x @ x.T)


def test_hybrid_sharding_and_dtensor() -> None:
    run_ranks(check_hybrid, 4)


def check_calls(rank: int, world_size: int) -> None:
    """What FastVideo's models call below the layer, on both groups and on the default one."""
    with job(rank, world_size):
        sp = ps.get_sp_group()
        for group in (sp.device_group, sp.cpu_group, None):
            for dtype in (torch.float32, torch.int64, torch.bfloat16, torch.bool):
                xs = [cases.make(r, (world_size, 5), dtype) for r in range(world_size)]
                out = torch.empty(world_size, 5, dtype=dtype)
                dist.all_to_all_single(out, xs[rank], group=group)
                assert torch.equal(out, torch.stack([x[rank] for x in xs]))
                stacked = torch.empty(world_size, world_size, 5, dtype=dtype)
                dist.all_gather_into_tensor(stacked, xs[rank], group=group)
                assert torch.equal(stacked, torch.stack(xs))
                parts = [torch.empty_like(xs[0]) for _ in xs]
                dist.all_gather(parts, xs[rank], group=group)
                assert torch.equal(torch.stack(parts), torch.stack(xs))
                given = xs[rank].clone()
                dist.broadcast(given, src=world_size - 1, group=group)
                assert torch.equal(given, xs[-1])
            ones = torch.ones(world_size, 3)
            mine = torch.empty(1, 3)
            dist.reduce_scatter_tensor(mine, ones * (rank + 1), group=group)
            total = world_size * (world_size + 1) // 2
            assert (mine == total).all()
            count = torch.full((2,), rank, dtype=torch.int32)
            dist.all_reduce(count, group=group)
            assert count.tolist() == 2 * [total - world_size]
            mean = torch.full((2,), float(rank))
            dist.all_reduce(mean, op=dist.ReduceOp.AVG, group=group)
            assert (mean == (world_size - 1) / 2).all()
            box = [rank, "x"]
            dist.broadcast_object_list(box, src=1, group=group)
            assert box == [1, "x"]
            objects: list[object] = [None] * world_size
            dist.all_gather_object(objects, {"rank": rank}, group=group)
            assert objects == [{"rank": r} for r in range(world_size)]
            if rank == 0:
                dist.send(mean, 1, group=group)
            elif rank == 1:
                dist.recv(mean, 0, group=group)
            dist.barrier(group=group)


@pytest.mark.parametrize("world_size", [2, 3])
def test_torch_calls_on_the_groups(world_size: int) -> None:
    run_ranks(check_calls, world_size)
