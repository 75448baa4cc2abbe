"""DistributedDataParallel over "fastvideo" trains to the same weights as over Gloo.

torchrun --nproc-per-node 2 examples/03_ddp.py
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

STEPS = 20


def train(group: dist.ProcessGroup) -> list[torch.Tensor]:
    """Train a small model on data of this rank; returns its weights after the last step."""
    torch.manual_seed(0)  # the same model on all ranks
    network = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 1))
    model = DistributedDataParallel(network, process_group=group)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    torch.manual_seed(1 + dist.get_rank())  # other data on each rank
    for _ in range(STEPS):
        x = torch.randn(16, 32)
        loss = (model(x) - x.sum(dim=1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [weight.detach() for weight in network.parameters()]


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("fastvideo")
    world = dist.get_world_size()
    ours = train(dist.group.WORLD)
    theirs = train(dist.new_group(backend="gloo"))
    for mine, other in zip(ours, theirs, strict=True):
        if world <= 2:  # a + b = b + a: with two ranks nothing may differ, not even rounding
            torch.testing.assert_close(mine, other, rtol=0, atol=0)
        else:  # with more, Gloo adds in another order
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    if dist.get_rank() == 0:
        count = sum(weight.numel() for weight in ours)
        print(f"{count} weights after {STEPS} steps on {world} ranks: the same as over Gloo")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
