"""The part of a message queue that goes over a process group: who is where, and remote readers."""

from __future__ import annotations

import collections
import contextlib
import enum
import itertools
import os
import struct
import time
import weakref
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastvideo_dist._compat import extension
from fastvideo_dist.local import this_node
from fastvideo_dist.serialize import flatten, unflatten

__all__ = ["Kind", "Receiver", "Sender", "gather", "host_identity", "split"]

# Beside the user's own sends; high, and fits every backend. Messages are told apart by their sender
# and tag, so each queue of a writer has another one.
_TAG = 0x51460000
_TAGS = 0x10000
_numbers = itertools.count()
# What closed writers sent and nobody may have received yet: a backend may forget it with its work.
_sent: weakref.WeakKeyDictionary[dist.ProcessGroup, list[Any]] = weakref.WeakKeyDictionary()
# A queue may have nothing to say for longer than a collective may take. In milliseconds an int.
_FOREVER = timedelta(days=20)
_ROUNDING_S = 0.005  # backends wait whole milliseconds, which may be less than they were told


class Kind(enum.IntEnum):
    """The first word of a message; the second is its length in bytes."""

    OBJECT = 1
    CLOSED = 2


def host_identity() -> tuple[str, int]:
    """Equal for two processes if one can open the other's memory: node and user."""
    return this_node(), os.geteuid()


def split(hosts: Sequence[object], writer_rank: int) -> tuple[list[int], list[int]]:
    """The readers on the writer's host and the others, by rank."""
    readers = [rank for rank in range(len(hosts)) if rank != writer_rank]
    local = [rank for rank in readers if hosts[rank] == hosts[writer_rank]]
    return local, [rank for rank in readers if hosts[rank] != hosts[writer_rank]]


def gather(pg: dist.ProcessGroup, obj: object) -> list[Any]:
    """Every rank's object, by rank. Collective."""
    if pg.size() == 1:
        return [obj]
    mine = flatten(obj)
    lengths = [_cpu_tensor(1, torch.int64) for _ in range(pg.size())]
    dist.all_gather(lengths, torch.tensor([mine.numel()], device="cpu"), group=pg)
    longest = max(int(length) for length in lengths)
    padded = _cpu_tensor(longest).zero_()
    padded[: mine.numel()] = mine
    all_of_them = [_cpu_tensor(longest) for _ in range(pg.size())]
    dist.all_gather(all_of_them, padded, group=pg)
    return [unflatten(one) for one in all_of_them]


def _cpu_tensor(elements: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.empty(elements, dtype=dtype, device="cpu")  # whatever the default device is


def _head(kind: Kind, length: int) -> Tensor:
    return torch.tensor([kind, length], dtype=torch.int64, device="cpu")


def _frame(parts: Sequence[Any]) -> Tensor:
    """Parts end to end behind a table of their lengths, as one uint8 tensor."""
    views = [memoryview(part) for part in parts]
    table = struct.pack(f"={1 + len(views)}q", len(views), *(view.nbytes for view in views))
    frame = _cpu_tensor(len(table) + sum(view.nbytes for view in views))
    memory = memoryview(extension().memory_of(frame))
    memory[: len(table)] = table
    at = len(table)
    for view in views:
        memory[at : at + view.nbytes] = view
        at += view.nbytes
    return frame


def _parts(frame: Tensor) -> list[Any]:
    """Each part in memory of its own, so that it is aligned and lives as long as it is needed."""
    memory = memoryview(extension().memory_of(frame))
    (count,) = struct.unpack_from("=q", memory)
    lengths = struct.unpack_from(f"={count}q", memory, 8)
    parts, at = [], 8 * (1 + count)
    for length in lengths:
        parts.append(bytearray(memory[at : at + length]))
        at += length
    return parts


@contextlib.contextmanager
def _without_deadline(pg: dist.ProcessGroup) -> Iterator[None]:
    """What is posted inside may wait for as long as both ranks live, whatever the group's timeout.

    A receive that timed out would break the group, and with it all that goes on there.
    """
    backend = pg._get_backend(torch.device("cpu"))
    timeout = backend.options._timeout
    backend.set_timeout(_FOREVER)
    try:
        yield
    finally:
        backend.set_timeout(timeout)


class Sender:
    """The writer's side: sends each message to every remote reader, at most `ahead` ahead."""

    def __init__(self, pg: dist.ProcessGroup, name: str, ranks: list[int], ahead: int) -> None:
        self._pg = pg
        self._name = name
        self._ranks = ranks
        self._ahead = ahead
        self.tag = _TAG + next(_numbers) % _TAGS
        # Messages under way, oldest first: works, and tensors that must live as long.
        self._under_way: collections.deque[list[tuple[int, Any, Tensor]]] = collections.deque()
        self._closed = False

    def wait_for_room(self, deadline: float | None) -> None:
        """Until `send` would not exceed `ahead`. Raises TimeoutError."""
        while len(self._under_way) >= self._ahead:
            self._settle(deadline)

    def send(self, kind: Kind, parts: Sequence[Any]) -> None:
        """Does not wait."""
        frame = _frame(parts)
        message = []
        for rank in self._ranks:
            for tensor in (_head(kind, frame.numel()), frame):
                with _without_deadline(self._pg):
                    work = self._pg.send([tensor], rank, self.tag)
                message.append((rank, work, tensor))
        self._under_way.append(message)

    def _settle(self, deadline: float | None) -> None:
        """Waits until the oldest message has been received."""
        message = self._under_way[0]
        while message:
            rank, work, _ = message[0]
            what = f"enqueue, {self._ahead} messages ahead of rank {rank}, which"
            _wait(work, deadline, self._name, what)
            message.pop(0)
        self._under_way.popleft()

    def close(self) -> None:
        """Tells the readers, as far as that goes without waiting."""
        if self._closed:
            return
        self._closed = True
        _sent.setdefault(self._pg, []).append(self._under_way)
        try:
            for rank in self._ranks:
                head = _head(Kind.CLOSED, 0)
                self._under_way.append([(rank, self._pg.send([head], rank, self.tag), head)])
        except RuntimeError:
            pass  # the group is broken or destroyed, which tells them too


class Receiver:
    """A remote reader's side."""

    def __init__(self, pg: dist.ProcessGroup, name: str, writer_rank: int, tag: int) -> None:
        self._pg = pg
        self._name = name
        self._writer = writer_rank
        self._tag = tag
        # What is under way is kept when a wait for it times out.
        self._head: tuple[Any, Tensor] | None = None
        self._body: tuple[Any, Tensor] | None = None
        self._ended = False

    def receive(self, kind: Kind, timeout: float | None) -> list[Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._body is None:
            length = self._receive_head(kind, deadline)
            frame = _cpu_tensor(length)
            self._body = (self._recv(frame), frame)
        work, frame = self._body
        _wait(work, deadline, self._name, f"dequeue from rank {self._writer}, which")
        self._body = None
        return _parts(frame)

    def _receive_head(self, wanted: Kind, deadline: float | None) -> int:
        if self._ended:
            self._raise_ended()
        if self._head is None:
            head = _cpu_tensor(2, torch.int64)
            self._head = (self._recv(head), head)
        work, head = self._head
        _wait(work, deadline, self._name, f"dequeue from rank {self._writer}, which")
        self._head = None
        kind, length = head.tolist()
        if kind == Kind.CLOSED:
            self._ended = True
            self._raise_ended()
        if kind != wanted:
            raise dist.DistBackendError(
                f'MessageQueue "{self._name}": rank {self._writer} sent a message of kind {kind}, '
                f"expected {int(wanted)}; something else sends with tag {self._tag} in this group"
            )
        return int(length)

    def _recv(self, tensor: Tensor) -> Any:
        with _without_deadline(self._pg):
            return self._pg.recv([tensor], self._writer, self._tag)

    def _raise_ended(self) -> None:
        raise dist.DistBackendError(
            f'MessageQueue "{self._name}": the writer, rank {self._writer} of the group, '
            "closed it. Nothing more will come; close the queue."
        )

    def close(self) -> None:
        self._ended = True


def _wait(work: Any, deadline: float | None, name: str, what: str) -> None:
    if deadline is None:
        work.wait(_FOREVER)
        return
    left = max(deadline - time.monotonic(), 0.001)  # 0 would mean the group's own timeout
    try:
        work.wait(timedelta(seconds=left))
    except RuntimeError as error:
        if time.monotonic() < deadline - _ROUNDING_S:
            raise
        raise TimeoutError(
            f'MessageQueue "{name}": timed out: {what} did not answer in time: {error}'
        ) from error
