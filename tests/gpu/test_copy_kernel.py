"""The kernel that copies strided memory, against torch's own copies."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from fastvideo_dist._compat import extension

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

DTYPES = [torch.int8, torch.bfloat16, torch.float32, torch.float64, torch.complex128]


def copy_on_gpu(sources: list[Tensor], targets: list[Tensor]) -> None:
    extension().copy_on_gpu(sources, targets)


def strided(shape: list[int], dtype: torch.dtype, chance: random.Random) -> Tensor:
    """Random bytes in an order of dimensions and with gaps and an offset of chance's choice."""
    order = chance.sample(range(len(shape)), len(shape))
    gaps = [chance.choice([0, 0, 1, 4]) for _ in shape]
    offset = chance.choice([0, 1, 8])
    outer = [shape[d] + gaps[d] for d in order]
    size = torch.Size(outer).numel() + offset
    raw = torch.randint(0, 255, (size * dtype.itemsize,), device="cuda", dtype=torch.uint8)
    whole = raw.view(dtype)[offset:].view(outer)
    inner = whole[tuple(slice(gaps[d], None) for d in order)]
    return inner.permute([order.index(d) for d in range(len(shape))])


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_strides(dtype: torch.dtype) -> None:
    chance = random.Random(1)
    for round_ in range(60):
        sources, targets = [], []
        for _ in range(chance.choice([1, 4, 40, 300])):
            shape = [chance.randint(1, 9) for _ in range(3)] + [chance.choice([1, 3, 8, 64, 129])]
            sources.append(strided(shape, dtype, chance))
            targets.append(strided(shape, dtype, chance))
        wholes = [target.clone() for target in targets]
        copy_on_gpu(sources, targets)
        for source, target, before in zip(sources, targets, wholes, strict=True):
            assert same_bytes(target, source), (round_, before.shape, source.stride())


def test_nothing_else_is_written() -> None:
    for dtype, width in itertools.product(DTYPES, (1, 5, 8, 127)):
        memory = torch.zeros(64, 2 * width, device="cuda", dtype=dtype)
        ones = torch.ones(64, width, device="cuda", dtype=dtype)
        copy_on_gpu([ones], [memory[:, width // 2 : width // 2 + width]])
        assert memory.ne(0).sum().item() == 64 * width


def test_an_expanded_source() -> None:
    x = torch.randn(3, 1, 5, 1, device="cuda").expand(3, 7, 5, 16)
    y = torch.empty(3, 7, 5, 16, device="cuda")
    copy_on_gpu([x], [y])
    assert torch.equal(x, y)


def test_more_than_2_to_the_31_elements() -> None:
    """Bytes at odd places, so that each is a unit of its own, and tokens of 16 bytes."""
    free, _ = torch.cuda.mem_get_info()
    if free < 14 << 30:
        pytest.skip(f"{free >> 30} GiB are free, 14 are needed")
    count = (1 << 31) + 12345
    source = torch.randint(0, 255, (count + 1,), device="cuda", dtype=torch.uint8)
    target = torch.zeros(count + 3, device="cuda", dtype=torch.uint8)
    copy_on_gpu([source[1:]], [target[3:]])
    assert torch.equal(source[1:], target[3:])
    del target
    parts = source[: (1 << 31) - (1 << 31) % 1280].view(-1, 10, 128)
    heads = torch.empty(parts.shape[1], parts.shape[0], 128, device="cuda", dtype=torch.uint8)
    copy_on_gpu([parts.transpose(0, 1)], [heads])
    assert torch.equal(parts.transpose(0, 1), heads)


def test_on_another_stream_and_in_a_graph() -> None:
    x = torch.randn(8, 33, 64, device="cuda")
    y = torch.zeros(33, 8, 64, device="cuda")
    copy_on_gpu([x.transpose(0, 1)], [y])  # graphs capture what is loaded
    y.zero_()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy_on_gpu([x.transpose(0, 1)], [y])
    torch.cuda.synchronize()
    assert not y.any()
    x.mul_(2)
    graph.replay()
    assert torch.equal(x.transpose(0, 1), y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        x.neg_()
        copy_on_gpu([x.transpose(0, 1)], [y])
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(x.transpose(0, 1), y)
