"""Every rank says who it is and takes part in a sum.

torchrun --nproc-per-node 2 examples/01_hello_ranks.py
"""

import torch
import torch.distributed as dist


def main() -> None:
    dist.init_process_group("fastvideo")
    rank, world = dist.get_rank(), dist.get_world_size()

    x = torch.full((4,), float(rank + 1))
    dist.all_reduce(x)
    expected = world * (world + 1) / 2
    if not torch.equal(x, torch.full((4,), expected)):
        raise SystemExit(f"rank {rank}: the sum is {x.tolist()}, not {expected}")

    names: list[str | None] = [None] * world
    dist.all_gather_object(names, f"rank {rank} of {world}")
    if rank == 0:
        print(f"hello from {', '.join(map(str, names))}; the sum is {x.tolist()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
