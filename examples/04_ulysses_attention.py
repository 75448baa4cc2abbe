"""Ulysses around any attention function, trained: heads need not divide, nor the sequence.

Each rank holds a slice of the sequence. q, k and v travel together to where each rank has the whole
sequence and some of the heads; what attention makes of them travels back. Gradients take the same
way in the other direction.

torchrun --nproc-per-node 2 examples/04_ulysses_attention.py
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastvideo_dist.ops import all_to_all_4d, split_sizes

BATCH, SEQUENCE, HEADS, DIM = 1, 45, 5, 16


def ulysses_attention(
    q: Tensor, k: Tensor, v: Tensor, attention: Callable, lengths: list[int] | None = None
) -> Tensor:
    """[B, S_r, H, D] in and out, S_r = lengths[r] on rank r; None: the same on all ranks."""
    heads = split_sizes(q.shape[2], dist.get_world_size())
    q, k, v = all_to_all_4d([q, k, v], 2, 1, gather_sizes=lengths)  # [B, S, H_r, D]
    return all_to_all_4d(attention(q, k, v), 1, 2, scatter_sizes=lengths, gather_sizes=heads)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, S, H, D] in and out. The transposed result is sent as it lies: no contiguous()."""
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(*heads_first).transpose(1, 2)


def main() -> None:
    dist.init_process_group("fastvideo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)  # the same on all ranks, so that each can check its own part
    whole = [torch.randn(BATCH, SEQUENCE, HEADS, DIM, requires_grad=True) for _ in range(3)]
    lengths = split_sizes(SEQUENCE, world)
    mine = [x.detach().split(lengths, dim=1)[rank].requires_grad_() for x in whole]

    out = ulysses_attention(*mine, attention, lengths)
    out.square().sum().backward()
    attention(*whole).square().sum().backward()
    for part, x in zip(mine, whole, strict=True):
        torch.testing.assert_close(part.grad, x.grad.split(lengths, dim=1)[rank])
    if rank == 0:
        print(f"{world} ranks: gradients of {SEQUENCE} tokens and {HEADS} heads equal one rank's")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
