"""What goes through queues in tests, and how it is compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def raised(kind: type[BaseException], call: Callable[[], object]) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def objects() -> list[Any]:
    generator = np.random.default_rng(0)
    every_dtype = [torch.bool, torch.int64, torch.bfloat16, torch.complex64, torch.float8_e4m3fn]
    return [
        None,
        "words",
        {"nested": [1, (2.5, {"deep": b"bytes"})]},
        os.urandom(0),
        {"large": [b"8" * (1 << 16), b"9" * 1_000_000], "text": "\u00e4" * 100_000},
        torch.tensor(3.5),
        torch.empty(0, 4),
        torch.arange(12.0).reshape(3, 4).t(),
        [torch.ones(7).to(dtype) for dtype in every_dtype],
        generator.integers(0, 256, 10 << 20, dtype=np.uint8),  # 10 MB
        {"video": torch.arange(3 << 20, dtype=torch.float32), "audio": np.arange(1000)[::3]},
        list(range(1000)),
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)]
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*bits)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)
