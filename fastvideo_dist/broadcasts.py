"""Objects and dictionaries of tensors from one rank to all others.

A broadcast of the group carries a frame of fixed size, and in it the message if that is short:
ranks that disagree on the call or on its source all raise, as in any broadcast. A longer message
follows through the queue that the source writes and the others read, and tensors that are not the
CPU's through the group.
"""

from __future__ import annotations

import pickle
import struct
import zlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from fastvideo_dist import wire
from fastvideo_dist.agreement import Agreement
from fastvideo_dist.message_queue import MessageQueue
from fastvideo_dist.process_groups import OURS, backend_of
from fastvideo_dist.tensor_dict import Incoming, encode, encode_object
from fastvideo_dist.wire import Buffer, Kind, Memory, bytes_of, memory_of

__all__ = ["Broadcaster"]

# All of it stays in a core's share of the caches; a message of 20 MB takes twice as long through
# six chunks of 4 MB, FastVideo's sizes.
_CHUNK_BYTES, _CHUNKS = 1 << 20, 4

_NAMES = {Kind.OBJECT: "broadcast_object", Kind.TENSOR_DICT: "broadcast_tensor_dict"}
# After the frame: number of the call, check sum of the coordinator's name, where the message is.
_MARK = struct.Struct("<QII")
_IN_FRAME, _IN_QUEUE, _NOWHERE = 1, 2, 3  # nowhere: in the frame stands why
_SIZES = 61  # less than the difference between the kinds


class Broadcaster:
    """Broadcasts over one group. Ranks are ranks in the group; one thread at a time.

    Raises, from each call:
        RuntimeError: what the source gave cannot be sent, which it alone sees: it raises why, and
            the others that it did. The group stays usable.
        TimeoutError: on the source, no room for a long message within the group's timeout.
        torch.distributed.DistBackendError: a rank died or did not come, or the ranks make other
            calls: another kind, another source. Then all later broadcasts raise too.
    """

    def __init__(
        self, group: ProcessGroup, name: str, device: torch.device, timeout: timedelta | None
    ) -> None:
        self._group = group
        self._name = name
        self._device = device
        self._timeout = None if timeout is None else timeout.total_seconds()
        self._rank = group.rank()
        self._queues: dict[int, MessageQueue] = {}
        self._agreement = Agreement(group, name)
        self._is_ours = backend_of(group) == OURS
        self._code = zlib.crc32(name.encode())
        # The transport compares sizes, so they tell the kind and, mostly, the coordinator.
        extra = _MARK.size + self._code % _SIZES
        self._frames = {kind: Memory(kind.value + extra) for kind in _NAMES}
        self._failed = ""
        # Every message says which call it belongs to, so that ranks out of step notice.
        self._calls = 0

    def queue(self, src: int) -> MessageQueue:
        """The queue that `src` writes. Collective if it is the first call for this rank."""
        queue = self._queues.get(src)
        if queue is None:
            queue = self._queues[src] = MessageQueue.create_from_process_group(
                self._group, _CHUNK_BYTES, _CHUNKS, writer_rank=src, name=self._name
            )
        return queue

    def broadcast_object(self, obj: Any, src: int) -> Any:
        if self._rank == src:
            self._send(src, Kind.OBJECT, lambda: encode_object(obj))
            return obj
        return self._receive(src, Kind.OBJECT).object()

    def broadcast_tensor_dict(
        self, tensor_dict: dict[Any, Any] | None, src: int
    ) -> dict[Any, Any] | None:
        if self._rank == src:
            # What is no dictionary is refused by `encode`.
            self._send(src, Kind.TENSOR_DICT, lambda: encode(tensor_dict))  # type: ignore[arg-type]
            return tensor_dict
        return self._receive(src, Kind.TENSOR_DICT).tensor_dict()

    def close(self) -> None:
        """What was sent can still be read by the others. Local and idempotent."""
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            queue.close()

    def _send(
        self, src: int, kind: Kind, taken_apart: Callable[[], tuple[bytes, list[Buffer]]]
    ) -> None:
        frame = self._frames[kind]
        try:
            head, buffers = taken_apart()
        except Exception as error:
            words = f"{type(error).__name__}: {error}".encode()[: kind.value]
            frame.view[: kind.value] = words.ljust(kind.value)
            self._announce(src, kind, _NOWHERE)
            self._calls += 1
            raise
        where = _IN_FRAME if wire.fits(kind, head, buffers) else _IN_QUEUE
        if where == _IN_FRAME:
            wire.pack_into(frame, kind, head, buffers)
        self._announce(src, kind, where)
        if where == _IN_QUEUE:
            # Only once all are here: making a queue is collective, and a message longer than the
            # queue is written as it is read.
            others = [b for b in buffers if isinstance(b, Tensor) and not b.is_cpu]
            here = [pickle.PickleBuffer(memory_of(b)) for b in buffers if _is_here(b)]
            self.queue(src).enqueue((self._calls, head, here), self._timeout)
            for tensor in others:
                self._broadcast(tensor, src)
        self._calls += 1

    def _receive(self, src: int, kind: Kind) -> Incoming:
        frame = self._frames[kind]
        self._exchange(src, kind)
        number, code, where = _MARK.unpack_from(frame.view, kind.value)
        self._check(src, kind, (number, code), (self._calls, self._code))
        incoming = Incoming(self._device)
        is_object = kind is Kind.OBJECT
        if where == _NOWHERE:
            self._calls += 1
            words = bytes(frame.view[: kind.value]).decode(errors="replace").rstrip()
            raise RuntimeError(
                f"{_NAMES[kind]} from rank {src} on group {self._name!r}, rank {self._rank}: the "
                f"source could not send: {words}"
            )
        if where == _IN_FRAME:
            targets = incoming.targets_of_object if is_object else incoming.targets
            wire.unpack(kind, frame, _nothing_follows, targets)
        else:
            number, head, memories = self.queue(src).dequeue(self._timeout)
            self._check(src, kind, (number,), (self._calls,))
            if is_object:
                incoming.take_object(memories)
            else:
                for tensor in incoming.take(memoryview(head), memories):
                    self._broadcast(tensor, src)
        self._calls += 1
        return incoming

    def _call(self, src: int, kind: Kind) -> str:
        return f"{_NAMES[kind]} from rank {src}, its number {self._calls}"

    def _announce(self, src: int, kind: Kind, where: int) -> None:
        """On the source: the frame, whose content is there already."""
        _MARK.pack_into(self._frames[kind].view, kind.value, self._calls, self._code, where)
        self._exchange(src, kind)

    def _exchange(self, src: int, kind: Kind) -> None:
        """The frame of `kind`, of `src` to all."""
        if self._failed:
            raise dist.DistBackendError(
                f"{self._call(src, kind)}: given up, because earlier {self._failed}"
            )
        frame = self._frames[kind].tensor
        options = dist.BroadcastOptions()
        options.rootRank, options.asyncOp = src, False
        try:
            if not self._is_ours:  # others do not compare the roots
                self._agreement.check(self._call(src, kind))
            self._group.broadcast([frame], options).wait()
        except dist.DistBackendError as error:
            self._failed = (
                f"{self._call(src, kind)} on group {self._name!r}, rank {self._rank}, failed, "
                f"which is announced in {frame.nbytes} bytes: {error}"
            )
            raise dist.DistBackendError(self._failed) from error

    def _check(self, src: int, kind: Kind, came: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if came == wanted:
            return
        call = self._call(src, kind)
        self._failed = (
            f"the ranks of group {self._name!r} disagree: rank {self._rank} calls {call}, but rank "
            f"{src} sent its number {came[0]}"
            + ("" if came[1:] == wanted[1:] else ", of another coordinator")
            + "; every rank must make the same calls in the same order"
        )
        raise dist.DistBackendError(self._failed)

    def _broadcast(self, tensor: Tensor, src: int) -> None:
        dist.broadcast(bytes_of(tensor), group=self._group, group_src=src)


def _is_here(buffer: Buffer) -> bool:
    return isinstance(buffer, memoryview) or buffer.is_cpu


def _nothing_follows(_: Tensor) -> None:
    raise RuntimeError("a message that fits into its frame was announced as longer")
