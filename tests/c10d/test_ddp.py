"""DistributedDataParallel: the training of one process, divided over ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from c10d import cases
from harness import run_ranks

STEPS, BATCH, FEATURES = 4, 12, 40


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(FEATURES, 300), nn.Tanh(), nn.Linear(300, 200), nn.Tanh(), nn.Linear(200, 1)
    )


def batch(step: int) -> Tensor:
    return torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(step))


def train(network: nn.Module, part: slice) -> list[Tensor]:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        network(batch(step)[part]).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in network.parameters()]


def check(rank: int, world_size: int, options: dict[str, object]) -> str:
    share = BATCH // world_size
    network = DistributedDataParallel(model(), bucket_cap_mb=0.05, **options)  # several buckets
    parameters = train(network, slice(rank * share, (rank + 1) * share))
    for ours, wanted in zip(parameters, train(model(), slice(None)), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)
    return cases.digest(parameters)


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_as_bucket_view": True}, {"find_unused_parameters": True}],
    ids=["plain", "bucket view", "find unused"],
)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ddp_trains_as_one_process_does(world_size: int, options: dict[str, object]) -> None:
    digests = run_ranks(check, world_size, options=options)
    assert len(set(digests)) == 1, "the ranks hold different parameters"
