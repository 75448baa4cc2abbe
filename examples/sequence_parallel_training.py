"""Train a small video diffusion transformer with its sequence spread over the ranks.

The tokens of a noisy clip are split over the sequence parallel group. Attention swaps sequence for
heads and back (Ulysses); everything else works on one rank's tokens. The same model is trained on
the whole sequence in one process, and losses and gradients of every step must agree: eager and
compiled.

torchrun --nproc-per-node 2 -m examples.sequence_parallel_training
"""

import math
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn

from demo.clip import load_clip
from fastvideo_dist.communication_op import (
    sequence_model_parallel_all_gather,
    sequence_model_parallel_all_to_all_4D,
    sequence_model_parallel_shard,
)
from fastvideo_dist.ops import all_to_all_4d
from fastvideo_dist.parallel_state import (
    cleanup_dist_env_and_memory,
    get_sp_group,
    get_sp_parallel_rank,
    get_sp_world_size,
    maybe_init_distributed_environment_and_model_parallel,
)

FRAMES, PATCH, WIDTH, HEADS, BLOCKS = 4, 16, 96, 4, 2
STEPS, NOISE_LEVELS = 4, 1000
TOLERANCE = 1e-5  # relative; in float64, so that what it shows is not rounding


class Attention(nn.Module):
    """Self-attention over the whole sequence of which `x` [B, S/W, C] is this rank's part."""

    def __init__(self, parallel: bool):
        super().__init__()
        self.parallel = parallel
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3 * HEADS, -1).chunk(3, dim=2)
        if self.parallel:  # one exchange for the three, from where they lie
            qkv = all_to_all_4d(qkv, 2, 1, get_sp_group().device_group)
        q, k, v = (part.transpose(1, 2) for part in qkv)
        # Softmax spelled out: compiled to the fused attention it has no gradient in float64.
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        seen = ((scores - scores.logsumexp(-1, keepdim=True)).exp() @ v).transpose(1, 2)
        if self.parallel:
            seen = sequence_model_parallel_all_to_all_4D(seen, scatter_dim=1, gather_dim=2)
        return self.out(seen.reshape(batch, length, WIDTH))


class Block(nn.Module):
    """Attention and a small network, scaled and shifted by the noise level (adaLN)."""

    def __init__(self, parallel: bool):
        super().__init__()
        self.attention = Attention(parallel)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2))
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.modulation = nn.Linear(WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        shift, scale, shift_mlp, scale_mlp = self.modulation(level).unsqueeze(1).chunk(4, dim=-1)
        x = x + self.attention(self.norms[0](x) * (1 + scale) + shift)
        return x + self.mlp(self.norms[1](x) * (1 + scale_mlp) + shift_mlp)


class Transformer(nn.Module):
    """Predicts the noise in tokens [B, S, 3 * PATCH**2] of noise level [B]."""

    def __init__(self, tokens: int, parallel: bool):
        super().__init__()
        self.parallel = parallel
        self.embed = nn.Linear(3 * PATCH**2, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, WIDTH))
        self.level = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU())
        self.blocks = nn.ModuleList(Block(parallel) for _ in range(BLOCKS))
        self.out = nn.Linear(WIDTH, 3 * PATCH**2)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        half = torch.arange(WIDTH // 2, dtype=x.dtype)
        angles = level[:, None] * torch.exp(-math.log(10000) / (WIDTH // 2) * half)
        condition = self.level(torch.cat([angles.cos(), angles.sin()], dim=-1))
        x = self.embed(x) + self.position
        if self.parallel:
            x, _ = sequence_model_parallel_shard(x, dim=1)
        for block in self.blocks:
            x = block(x, condition)
        x = self.out(x)
        return sequence_model_parallel_all_gather(x, dim=1) if self.parallel else x


def clip_as_tokens() -> Tensor:
    """[1, S, 3 * PATCH**2]: the frames cut into squares, float64 in -1..1."""
    squares = load_clip(FRAMES).double().unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
    return 2 * squares.permute(0, 2, 3, 1, 4, 5).reshape(1, -1, 3 * PATCH**2) - 1


def train(clean: Tensor, parallel: bool, compiled: bool = False) -> list[dict[str, Tensor]]:
    """Loss and gradients of each step, by name."""
    torch.manual_seed(0)  # the same model, noise and levels on every rank
    model = Transformer(clean.shape[1], parallel).double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    forward = torch.compile(model, fullgraph=True) if compiled else model
    steps = []
    for _ in range(STEPS):
        noise = torch.randn_like(clean)
        level = torch.randint(1, NOISE_LEVELS, (1,)).to(clean.dtype)
        angle = level / NOISE_LEVELS * math.pi / 2
        loss = (forward(clean * angle.cos() + noise * angle.sin(), level) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        # Every rank has the same loss, of which its own tokens gave the gradient: the mean over
        # the ranks is the whole, as the gathering's backward has counted each token W times.
        gradients = {
            name: get_sp_group().all_reduce(weight.grad, dist.ReduceOp.AVG)
            if parallel
            else weight.grad.clone()
            for name, weight in model.named_parameters()
        }
        for name, weight in model.named_parameters():
            weight.grad.copy_(gradients[name])
        optimizer.step()
        steps.append({"loss": loss.detach(), **gradients})
    return steps


def main() -> None:
    torch.set_num_threads(1)
    world_size = int(os.environ["WORLD_SIZE"])  # set by torchrun
    maybe_init_distributed_environment_and_model_parallel(1, world_size)
    clean = clip_as_tokens()
    alone = train(clean, parallel=False)
    for compiled in (False, True):
        spread = train(clean, parallel=True, compiled=compiled)
        for step, (mine, wanted) in enumerate(zip(spread, alone, strict=True)):
            for name in wanted:
                torch.testing.assert_close(
                    mine[name], wanted[name], rtol=TOLERANCE, atol=1e-12,
                    msg=lambda text, s=step, n=name: f"step {s}, {n}: {text}",
                )  # fmt: skip
    if get_sp_parallel_rank() == 0:
        losses = " -> ".join(f"{step['loss'].item():.4f}" for step in alone)
        print(
            f"{clean.shape[1]} tokens over {get_sp_world_size()} ranks, eager and compiled: losses "
            f"{losses} and all gradients equal those of one process"
        )
    cleanup_dist_env_and_memory()


if __name__ == "__main__":
    main()
