"""Ranks that believe to have GPUs, for tests of what is above torch's dispatcher."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import gpu_fakes
from fresh import FreshRanks, fresh_ranks


@contextlib.contextmanager
def gpu_ranks(fn: Callable[..., Any], world_size: int, **kwargs: Any) -> Iterator[FreshRanks]:
    """As `fresh_ranks` with `fn(control, fakes, folder, **kwargs)`, which begins with
    `become_gpu_rank(fakes, folder)`."""
    with (
        tempfile.TemporaryDirectory() as folder,
        fresh_ranks(fn, world_size, fakes=gpu_fakes.built(), folder=folder, **kwargs) as ranks,
    ):
        yield ranks


def run_gpu_ranks(
    fn: Callable[..., Any], world_size: int, within: float = 60, **kwargs: Any
) -> list[Any]:
    """What each rank's `fn` returns, none of which may raise."""
    with gpu_ranks(fn, world_size, **kwargs) as ranks:
        return ranks.values(within)
