"""Attention over a sequence that is spread over the ranks (Ulysses).

Each rank holds a slice of the sequence and all heads. The exchange turns that into the whole
sequence and a slice of the heads, which is what attention needs; a second one turns it back.

torchrun --nproc-per-node 2 examples/02_all_to_all_4d.py
"""

import torch
import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention

from fastvideo_dist.ops import all_to_all_4d

BATCH, SEQUENCE, HEADS, DIM = 1, 48, 12, 16


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """[B, S, H, D] in and out; torch's attention wants [B, H, S, D]."""
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(*heads_first).transpose(1, 2).contiguous()


def main() -> None:
    dist.init_process_group("fastvideo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same on all ranks, so that each can check its own part
    whole = [torch.randn(BATCH, SEQUENCE, HEADS, DIM) for _ in range(3)]

    mine = [x.chunk(world, dim=1)[rank].contiguous() for x in whole]  # [B, S/W, H, D]
    q, k, v = (all_to_all_4d(x, scatter_dim=2, gather_dim=1) for x in mine)  # [B, S, H/W, D]
    out = all_to_all_4d(attention(q, k, v), scatter_dim=1, gather_dim=2)  # [B, S/W, H, D]

    torch.testing.assert_close(out, attention(*whole).chunk(world, dim=1)[rank])
    if rank == 0:
        print(f"attention over {world} ranks equals attention on one: {tuple(out.shape)} per rank")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
