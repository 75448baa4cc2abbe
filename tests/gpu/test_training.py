"""A step of DDP and of FSDP2 is that of torch's own backend; the ops under torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fastvideo_dist import ops
from gpu.one_gpu import WORLD, join, nccl_group, run
from rank_process import Control

pytestmark = pytest.mark.timeout(400)

STEPS, BATCH, FEATURES = 3, 8, 64


def model(device: torch.device) -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(FEATURES, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(256, 1)).to(device)


def train(network: nn.Module, rank: int, device: torch.device) -> list[Tensor]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for step in range(STEPS):
        data = torch.randn(
            BATCH, FEATURES, generator=torch.Generator().manual_seed(10 * step + rank)
        )
        optimizer.zero_grad()
        network(data.to(device)).square().mean().backward()
        optimizer.step()
    found = []
    for parameter in network.parameters():
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        found.append(whole.detach().cpu())
    return found


def with_ddp(network: nn.Sequential, group: Any, device: torch.device) -> nn.Module:
    return DistributedDataParallel(network, process_group=group, bucket_cap_mb=0.1)


def with_fsdp(network: nn.Sequential, group: Any, device: torch.device) -> nn.Module:
    mesh = DeviceMesh.from_group(group, "cuda")
    for layer in network:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def steps(control: Control, wrapper: str) -> None:
    device = join(control)
    wrap = {"ddp": with_ddp, "fsdp": with_fsdp}[wrapper]
    ours = train(wrap(model(device), dist.group.WORLD, device), control.rank, device)
    theirs = train(wrap(model(device), nccl_group(), device), control.rank, device)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_a_step_is_that_of_torchs_own_backend(wrapper: str) -> None:
    run(steps, wrapper=wrapper)


def layer(x: Tensor, weight: Tensor) -> Tensor:
    part = ops.reduce_scatter(torch.tanh(x @ weight), 1)
    return ops.all_gather(part * 2, 1) + ops.all_reduce(x, "avg")


def compiled(control: Control) -> None:
    device = join(control)
    results = []
    for function in (layer, torch.compile(layer, fullgraph=True)):
        torch.manual_seed(control.rank)
        x = torch.randn(16, 32, device=device, requires_grad=True)
        weight = torch.randn(32, 32, device=device, requires_grad=True)
        y = function(x, weight)
        y.square().sum().backward()
        results.append([y.detach(), x.grad, weight.grad])
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-4)
    dist.barrier()
    dist.destroy_process_group()


def test_the_ops_under_compile() -> None:
    assert run(compiled) == [None] * WORLD
