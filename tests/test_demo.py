"""The demo's attention is non-local means, computed the long way, and its ranks agree with
one process. The clip is not needed here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from demo.attention import (
    GRID_STRIDE,
    HEADS,
    SPACE_WEIGHT,
    TIME_WEIGHT,
    assemble,
    attend,
    attend_steps,
    tokenize,
)
from demo.picture import save_picture
from demo.ranks import run_alone, run_ranks

SIGMA = 0.1
SHAPE = torch.Size([2, 3, 12, 16])


def noisy_clip() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0.2, 0.8, SHAPE[-1]).expand(SHAPE)
    return ramp + SIGMA * torch.randn(SHAPE, generator=generator)


def patch(frame: torch.Tensor, size: int, row: int, column: int) -> torch.Tensor:
    before, after = size // 2, size - 1 - size // 2
    padded = functional.pad(frame, (before, after, before, after), mode="reflect")
    return padded[:, row : row + size, column : column + size].flatten()


def test_attention_is_non_local_means() -> None:
    clip = noisy_clip()
    out = attend(*tokenize(clip, SIGMA))
    blurred = functional.avg_pool2d(functional.pad(clip, (1, 1, 1, 1), mode="reflect"), 3, 1)
    places = [
        (time, row, column)
        for time in range(SHAPE[0])
        for row in range(0, SHAPE[2], GRID_STRIDE)
        for column in range(0, SHAPE[3], GRID_STRIDE)
    ]
    weights = torch.tensor([TIME_WEIGHT, SPACE_WEIGHT, SPACE_WEIGHT])
    position = torch.tensor(places) * weights
    for index, head in enumerate(HEADS):
        seen = torch.stack([patch(blurred[t], head.patch, y, x) for t, y, x in places])
        values = torch.stack([patch(clip[t], head.patch, y, x) for t, y, x in places])
        mean_square = torch.cdist(seen, seen).square() / seen.shape[1]
        distance = (
            mean_square / (head.bandwidth * SIGMA) ** 2 + torch.cdist(position, position) ** 2
        )
        weight = torch.exp(-distance)
        expected = weight @ values / weight.sum(dim=1, keepdim=True)
        got = out[0, :, index, : values.shape[1]]
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_untouched_patches_give_the_clip_back() -> None:
    clip = noisy_clip()
    _, _, values = tokenize(clip, SIGMA)
    torch.testing.assert_close(assemble(values, clip.shape), clip)


def test_progress_counts_every_chunk() -> None:
    q, k, v = tokenize(noisy_clip(), SIGMA)
    steps = []
    attend(q, k, v, lambda: steps.append(1))
    assert len(steps) == attend_steps(q.shape[1], len(HEADS))


@pytest.mark.parametrize("world", [2, 4])
def test_the_ranks_get_what_one_process_gets(world: int, tmp_path: Path) -> None:
    """The demo's own path, on a clip of seconds: ranks, exchange, gathering, picture."""
    noisy = noisy_clip()
    alone = run_alone(noisy, SIGMA)
    spread = run_ranks(noisy, SIGMA, world)
    assert spread.out.shape == alone.out.shape
    torch.testing.assert_close(spread.out, alone.out, rtol=0, atol=1e-5)
    torch.testing.assert_close(spread.out_by_heads, alone.out, rtol=0, atol=1e-5)
    assert spread.exchange_fastvideo > 0
    assert spread.exchange_gloo > 0
    denoised = assemble(spread.out, SHAPE)
    save_picture(tmp_path / "out" / "frames.png", {"noisy": noisy[0], "denoised": denoised[0]})
    assert (tmp_path / "out" / "frames.png").read_bytes().startswith(b"\x89PNG")
