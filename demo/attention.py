"""Non-local-means denoising, written as the attention it is.

Non-local means replaces a patch by the average of all patches of the clip, each weighted by
exp(-|f_i - f_j|^2), where f are the patches' features divided by a bandwidth. Since

    -|f_i - f_j|^2  =  2 f_i . f_j  -  |f_j|^2  -  |f_i|^2

and the last term is the same for all j, softmax does not see it, that average is

    softmax(q k^T) v      with  q_i = [2 f_i, 1],  k_j = [f_j, -|f_j|^2],  v_j = the noisy patch.

One token is one grid position of one frame, so the sequence is the whole clip and attention is
spatio-temporal. A head is one patch size with one bandwidth.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

HEAD_DIM = 64
GRID_STRIDE = 2  # pixels between tokens; the smallest patch (3 x 3) still covers every pixel
SPACE_WEIGHT = 0.15  # feature units per pixel: far patches count less
TIME_WEIGHT = 0.2  # feature units per frame
QUERY_CHUNK = 2048  # queries per attention call, so that progress can be shown


@dataclass(frozen=True)
class Head:
    """`patch`: side in pixels; `bandwidth`: in units of the noise's standard deviation."""

    patch: int
    bandwidth: float


HEADS = (Head(4, 0.4), Head(4, 0.5), Head(3, 0.4), Head(3, 0.5))


def tokenize(noisy: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """float32 [T, 3, height, width] -> q, k, v, each [1, S, len(HEADS), HEAD_DIM], S = T * grid.

    Matching is done on a slightly blurred copy (3 x 3 mean), which is less fooled by the noise; the
    values are the noisy patches themselves.
    """
    guide = functional.avg_pool2d(functional.pad(noisy, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    position = _positions(noisy)
    queries, keys, values = [], [], []
    for head in HEADS:
        patches = _cut(guide, head.patch)
        scale = head.bandwidth * sigma * patches.shape[-1] ** 0.5
        feature = torch.cat([(patches - 0.5) / scale, position], dim=-1)
        norm = feature.square().sum(-1, keepdim=True)
        queries.append(_fit(torch.cat([2 * feature, torch.ones_like(norm)], dim=-1)))
        keys.append(_fit(torch.cat([feature, -norm], dim=-1)))
        values.append(_fit(_cut(noisy, head.patch)))
    q, k, v = (torch.stack(heads, dim=1).unsqueeze(0) for heads in (queries, keys, values))
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, step: Callable[[], object] = lambda: None) -> Tensor:
    """softmax(q k^T) v per head, all [1, S, heads, D]; calls `step` after each chunk of queries."""
    out = torch.empty_like(q)
    for head in range(q.shape[2]):
        keys, values = k[:, None, :, head], v[:, None, :, head]
        for start in range(0, q.shape[1], QUERY_CHUNK):
            rows = slice(start, start + QUERY_CHUNK)
            queries = q[:, None, rows, head]
            mixed = functional.scaled_dot_product_attention(queries, keys, values, scale=1.0)
            out[:, rows, head] = mixed[:, 0]
            step()
    return out


def attend_steps(tokens: int, heads: int) -> int:
    """How often `attend` calls `step`."""
    return heads * -(-tokens // QUERY_CHUNK)


def assemble(out: Tensor, shape: torch.Size) -> Tensor:
    """Attention's result [1, S, heads, D] -> frames of `shape` [T, 3, height, width].

    Overlapping patches are averaged, then the heads.
    """
    frames, channels, height, width = shape
    total = torch.zeros(shape)
    for index, head in enumerate(HEADS):
        size = channels * head.patch**2
        patches = out[0, :, index, :size].reshape(frames, -1, size).transpose(1, 2)
        before, padded = head.patch // 2, (height + head.patch - 1, width + head.patch - 1)
        sums, counts = (
            functional.fold(x, padded, head.patch, stride=GRID_STRIDE)
            for x in (patches, torch.ones_like(patches))
        )
        image = sums / counts.clamp_min(1)
        total += image[..., before : before + height, before : before + width]
    return total / len(HEADS)


def _cut(frames: Tensor, patch: int) -> Tensor:
    """Patches around the grid's positions: [T, 3, height, width] -> [S, 3 * patch^2]."""
    before, after = patch // 2, patch - 1 - patch // 2
    padded = functional.pad(frames, (before, after, before, after), mode="reflect")
    columns = functional.unfold(padded, patch, stride=GRID_STRIDE)
    return columns.transpose(1, 2).flatten(0, 1)


def _positions(frames: Tensor) -> Tensor:
    """Weighted time, row and column of each token: [S, 3]."""
    count, _, height, width = frames.shape
    axes = (
        torch.arange(count) * TIME_WEIGHT,
        torch.arange(0, height, GRID_STRIDE) * SPACE_WEIGHT,
        torch.arange(0, width, GRID_STRIDE) * SPACE_WEIGHT,
    )
    return torch.cartesian_prod(*axes)


def _fit(x: Tensor) -> Tensor:
    """Pad the last dimension with zeros to HEAD_DIM; zeros change neither q . k nor the result."""
    return functional.pad(x, (0, HEAD_DIM - x.shape[-1]))
