"""`group()`: calls that are made together, so that their order among each other does not matter."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from fastvideo_dist.nccl.errors import NcclInvalid

__all__ = ["Deferred", "defer", "group", "group_end", "group_start", "is_open"]


def _no_receive(_: Any) -> object:
    raise TypeError("only a receive has a buffer to copy to")


class Deferred(NamedTuple):
    """A call whose arguments have been checked."""

    where: str
    """Of the communicator: the same on all its ranks, and another for each."""
    rank: int
    start: Callable[[], Any]
    """Makes the call; returns a Transfer for sends and receives."""
    kind: str = "collective"
    """Or "send" or "recv"; these have what follows."""
    peer: int = -1
    buffer: Any = None
    copy: Callable[[Any], object] = _no_receive
    """Of a receive: puts another buffer of this rank there."""


class _Open(threading.local):
    depth = 0
    calls: list[Deferred]


_open = _Open()


def is_open() -> bool:
    """Whether this thread is between `group_start` and `group_end`."""
    return _open.depth > 0


def defer(call: Deferred) -> None:
    _open.calls.append(call)


def group_start() -> None:
    """Calls of this thread on communicators wait from here to the matching `group_end`.

    Their arguments are checked at once. Buffers may not be touched in between. Groups nest; the
    outermost counts.
    """
    if _open.depth == 0:
        _open.calls = []
    _open.depth += 1


def group_end() -> None:
    """Makes the calls since the outermost `group_start`, and returns when they are done.

    Sends and receives are all under way at once, so that ranks may exchange in any order, each also
    with itself. Collectives run one after the other: those of one communicator in the order they
    were called, the communicators in an order that is the same on all ranks.

    Raises:
        NcclInvalid: there was no `group_start`; a rank sends to itself and does not receive that.
        torch.distributed.DistBackendError: the first call that failed; the others are given up.
    """
    if _open.depth == 0:
        raise NcclInvalid("group_end: there is no open group; call group_start first")
    _open.depth -= 1
    if _open.depth > 0:
        return
    calls, _open.calls = _open.calls, []
    transfers = [call for call in calls if call.kind != "collective"]
    own = _pairs_with_oneself(transfers)
    under_way = [call.start() for call in transfers if call.peer != call.rank]
    for copy in own:
        copy()
    collectives = [call for call in calls if call.kind == "collective"]
    for call in sorted(collectives, key=lambda call: call.where):  # a stable sort
        call.start()
    for transfer in under_way:
        transfer.wait()


@contextlib.contextmanager
def group() -> Iterator[None]:
    """`group_start` and `group_end` around a block. If the block raises, none of its calls is made.

    Then other ranks may wait for them: `abort` the communicator, unless all ranks raise.
    """
    group_start()
    before = len(_open.calls)
    try:
        yield
    except BaseException:
        _open.depth -= 1
        del _open.calls[before:]
        raise
    group_end()


def _pairs_with_oneself(transfers: list[Deferred]) -> list[Callable[[], object]]:
    """What moves what ranks send to themselves, first sent first received."""
    sent: dict[str, deque[Deferred]] = defaultdict(deque)
    received: dict[str, deque[Deferred]] = defaultdict(deque)
    for call in transfers:
        if call.peer == call.rank:
            (sent if call.kind == "send" else received)[call.where].append(call)
    pairs: list[Callable[[], object]] = []
    for where in sent.keys() | received.keys():
        outgoing, incoming = sent[where], received[where]
        if len(outgoing) != len(incoming):
            raise NcclInvalid(
                f"group_end: rank {(outgoing or incoming)[0].rank} sends {len(outgoing)} messages "
                f"to itself and receives {len(incoming)}; they must match within the group"
            )
        for send, recv in zip(outgoing, incoming, strict=True):
            here, there = send.buffer, recv.buffer
            if (here.dtype, here.count) != (there.dtype, there.count):
                raise NcclInvalid(
                    f"group_end: rank {send.rank} sends itself {here.dtype} x {here.count} and "
                    f"receives {there.dtype} x {there.count}"
                )
            if here.device != there.device:
                raise NcclInvalid(
                    f"group_end: rank {send.rank} sends itself what is on {here.device} and "
                    f"receives it on {there.device}; they must be on one device"
                )
            pairs.append(partial(recv.copy, here))
    return pairs
