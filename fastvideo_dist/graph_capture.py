"""Capturing CUDA graphs: which stream work goes to meanwhile, and what has to be done before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

__all__ = ["GraphCaptureContext", "capture", "connect_gpus"]


@dataclass
class GraphCaptureContext:
    """The stream work is captured on; None where there are no streams."""

    stream: torch.cuda.Stream | None


@contextlib.contextmanager
def capture(
    name: str, context: GraphCaptureContext | None, connect: Callable[[], None]
) -> Iterator[GraphCaptureContext]:
    """`GroupCoordinator.graph_capture` of the group `name`.

    Args:
        connect: makes the group's ranks meet on their GPUs, which no capture allows.
    """
    if not torch.cuda.is_available():
        yield context or GraphCaptureContext(None)
        return
    if context is None:
        context = GraphCaptureContext(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    stream = context.stream
    if stream is None:
        raise ValueError(f"graph_capture on group {name!r}: there is no stream")
    connect()
    # What was started before must be done before the capture begins.
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield context
    # What comes after the block may use what was computed in it.
    torch.cuda.current_stream().wait_stream(stream)


def connect_gpus(group: ProcessGroup, device: torch.device) -> None:
    """Has NCCL make its connections on this rank's GPU. Collective.

    It makes those of each kind of call with the first one, and both kinds are made here: around
    the ring, and from each rank to each.
    """
    element = torch.zeros(1, device=device)
    dist.all_reduce(element, group=group)
    parts = torch.zeros(group.size(), device=device)
    dist.all_to_all_single(torch.empty_like(parts), parts, group=group)
