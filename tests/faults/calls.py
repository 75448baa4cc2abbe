"""Every collective as a call on a large message, to be made in a loop until a fault ends it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

COUNT = 1 << 20  # elements of float32: many rounds of any buffer


def _splits(rank: int, world_size: int) -> list[int]:
    return [(rank + peer + 1) * 70_000 for peer in range(world_size)]


def all_to_all_uneven() -> None:
    splits = _splits(dist.get_rank(), dist.get_world_size())
    given = torch.ones(sum(splits))
    dist.all_to_all_single(torch.empty_like(given), given, splits, splits)


def parts() -> list[torch.Tensor]:
    return list(torch.ones(dist.get_world_size(), COUNT // 4).unbind())


def gather() -> None:
    dist.gather(torch.ones(COUNT), _list_on_root(), dst=0)


def scatter() -> None:
    dist.scatter(torch.empty(COUNT), _list_on_root(), src=0)


def _list_on_root() -> list[torch.Tensor] | None:
    if dist.get_rank() != 0:
        return None
    return [torch.ones(COUNT) for _ in range(dist.get_world_size())]


def ring() -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    sent = dist.isend(torch.ones(COUNT), (rank + 1) % world_size)
    dist.recv(torch.empty(COUNT), (rank - 1) % world_size)
    assert sent is not None
    sent.wait()


def all_gather() -> None:
    mine = torch.ones(COUNT // 2)
    dist.all_gather_into_tensor(torch.empty(dist.get_world_size() * mine.numel()), mine)


def all_to_all() -> None:
    given = torch.ones(dist.get_world_size() * COUNT // 4)
    dist.all_to_all_single(torch.empty_like(given), given)


# The name is what the message says, but for the two that share one.
CALLS: dict[str, Callable[[], object]] = {
    "all_reduce": lambda: dist.all_reduce(torch.ones(COUNT)),
    "broadcast": lambda: dist.broadcast(torch.ones(COUNT), 0),
    "reduce": lambda: dist.reduce(torch.ones(COUNT), 0),
    "all_gather": all_gather,
    "gather": gather,
    "scatter": scatter,
    "reduce_scatter": lambda: dist.reduce_scatter(torch.empty(COUNT // 4), parts()),
    "all_to_all": all_to_all,
    "all_to_all, uneven": all_to_all_uneven,
    "barrier": dist.barrier,
    "small all_reduce": lambda: dist.all_reduce(torch.ones(2)),
    "async all_reduce": lambda: dist.all_reduce(torch.ones(COUNT), async_op=True).wait(),
    "send and recv": ring,
}
WORDS = {
    "all_to_all, uneven": "all_to_all",
    "small all_reduce": "all_reduce",
    "async all_reduce": "all_reduce",
    "send and recv": "(send|recv)",
}


def word_for(call: str) -> str:
    """How the error names the call, as a regular expression."""
    return WORDS.get(call, call)
