"""Capturing CUDA graphs: which stream work goes to meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

__all__ = ["GraphCaptureContext", "capture"]


@dataclass
class GraphCaptureContext:
    """The stream work is captured on; None where there are no streams."""

    stream: torch.cuda.Stream | None


@contextlib.contextmanager
def capture(name: str, context: GraphCaptureContext | None) -> Iterator[GraphCaptureContext]:
    """`GroupCoordinator.graph_capture` of the group `name`."""
    if not torch.cuda.is_available():
        yield context or GraphCaptureContext(None)
        return
    if context is None:
        context = GraphCaptureContext(torch.cuda.Stream())  # type: ignore[no-untyped-call]
    stream = context.stream
    if stream is None:
        raise ValueError(f"graph_capture on group {name!r}: there is no stream")
    # What was started before must be done before the capture begins.
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield context
