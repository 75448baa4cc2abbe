"""Objects and dictionaries of tensors from one rank to all others, as one message of a queue.

The first broadcast from a rank makes the queue that it writes and the others read. The writer does
not wait for its readers while there is room, and one message wakes each reader once, however many
tensors are in it. Tensors that are not the CPU's follow through the group.
"""

from __future__ import annotations

import pickle
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from fastvideo_dist._compat import extension
from fastvideo_dist.message_queue import MessageQueue
from fastvideo_dist.tensor_dict import Incoming, encode
from fastvideo_dist.wire import bytes_of

__all__ = ["Broadcaster"]

# FastVideo's sizes; it asks for the queue and never makes it.
_CHUNK_BYTES, _CHUNKS = 1 << 22, 6

_OBJECT, _TENSOR_DICT = "broadcast_object", "broadcast_tensor_dict"


class Broadcaster:
    """Broadcasts over one group. Ranks are ranks in the group; one thread at a time.

    Raises, from each call:
        TimeoutError: no message, or no room for one, within the group's timeout.
        torch.distributed.DistBackendError: a rank died, or the ranks make other calls.
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
            self._send(src, _OBJECT, obj)
            return obj
        return self._receive(src, _OBJECT)

    def broadcast_tensor_dict(
        self, tensor_dict: dict[Any, Any] | None, src: int
    ) -> dict[Any, Any] | None:
        if self._rank != src:
            head, memories = self._receive(src, _TENSOR_DICT)
            incoming = Incoming(self._device)
            for tensor in incoming.take(memoryview(head), memories):
                self._broadcast(tensor, src)
            return incoming.tensor_dict()
        if tensor_dict is None:
            raise TypeError(
                f"broadcast_tensor_dict on group {self._name!r}: rank {src} is the source and gave "
                "no dictionary"
            )
        head, buffers = encode(tensor_dict)
        memory_of = extension().memory_of
        here = [pickle.PickleBuffer(memory_of(buffer)) for buffer in buffers if buffer.is_cpu]
        self._send(src, _TENSOR_DICT, (head, here))
        for buffer in buffers:
            if not buffer.is_cpu:
                self._broadcast(buffer, src)
        return tensor_dict

    def close(self) -> None:
        """What was sent can still be read by the others. Local and idempotent."""
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            queue.close()

    def _send(self, src: int, kind: str, content: Any) -> None:
        self.queue(src).enqueue((self._calls, kind, content), self._timeout)
        self._calls += 1

    def _receive(self, src: int, kind: str) -> Any:
        number, sent, content = self.queue(src).dequeue(self._timeout)
        if (number, sent) != (self._calls, kind):
            raise dist.DistBackendError(
                f"the ranks of group {self._name!r} disagree: {kind} from rank {src} is broadcast "
                f"number {self._calls} of rank {self._rank}, but rank {src} sent its number "
                f"{number}, a {sent}; every rank must make the same calls in the same order"
            )
        self._calls += 1
        return content

    def _broadcast(self, tensor: Tensor, src: int) -> None:
        dist.broadcast(bytes_of(tensor), group=self._group, group_src=src)
