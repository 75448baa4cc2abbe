"""Which ranks are in which parallel group. FastVideo's layout; nothing is sent here."""

from __future__ import annotations

__all__ = ["check_sizes", "consecutive", "strided"]


def consecutive(world_size: int, size: int) -> list[list[int]]:
    """Groups of `size` neighbours: tensor and sequence parallel."""
    return [list(range(first, first + size)) for first in range(0, world_size, size)]


def strided(world_size: int, step: int) -> list[list[int]]:
    """Groups of every `step`-th rank: data parallel, with the size of a sequence group as step."""
    return [list(range(first, world_size, step)) for first in range(step)]


def check_sizes(world_size: int, tp: int, sp: int, dp: int) -> None:
    """Raises ValueError, naming both, where a size does not fit the number of ranks."""
    for kind, size in [("tensor_model_parallel_size", tp), ("sequence_model_parallel_size", sp)]:
        if size < 1 or world_size % size:
            raise ValueError(
                f"initialize_model_parallel: {kind} is {size}, which does not divide the world "
                f"size {world_size}"
            )
    if dp not in (1, world_size // sp):
        raise ValueError(
            f"initialize_model_parallel: data_parallel_size is {dp}, but world size {world_size} / "
            f"sequence_model_parallel_size {sp} leaves {world_size // sp}"
        )
