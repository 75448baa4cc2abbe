"""A queue of Python objects: one writer, many readers, each of whom gets every message in order.

Readers on the writer's host take messages out of shared memory (`csrc/shm/ring.h`), asleep while
there are none. Readers on other hosts get them over a process group. Nothing is left behind,
however the processes end; and one that dies ends the calls of the others.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from fastvideo_dist import _remote_queue
from fastvideo_dist._compat import extension
from fastvideo_dist.serialize import pack, unpack

__all__ = ["Handle", "MessageQueue"]

DEFAULT_CHUNK_BYTES = 24 << 20
DEFAULT_CHUNKS = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Handle:
    """What a process of the same user and host needs to become a reader. May be pickled.

    It holds the queue's 128-bit id; whoever runs as another user cannot use it.
    """

    address: bytes | None = field(repr=False)
    """Of the ring; None if no reader is on the writer's host."""

    local_reader_ranks: tuple[int, ...]
    """The ranks that may attach, in the order of their numbers in the ring."""

    name: str


class MessageQueue:
    """One end of a queue: of its writer if constructed, of a reader if made from a handle.

    A message occupies one chunk of shared memory, a longer one several. The writer may be
    `max_chunks` chunks ahead of its slowest reader, then it waits. Memory is taken as it is used.

    Use each end from one thread at a time; `close` may be called from any. A forked child has no
    end; it may make one from a handle.

    Args:
        n_reader: readers, 1 to 256.
        n_local_reader: those on this host. Others are served through `create_from_process_group`
            only, so here it must equal n_reader.
        local_reader_ranks: what the readers call themselves in `create_from_handle`; 0 to
            n_local_reader - 1 if not given.
        max_chunk_bytes: what `acquire_write` hands out; 64 and more.
        max_chunks: 1 to 65536. A ring of few megabytes in all stays in the caches: large objects
            pass through it up to twice as fast as through the default one.
        name: for messages.

    Raises:
        ValueError: arguments that contradict each other.
        torch.distributed.DistBackendError: shared memory could not be had.
    """

    def __init__(
        self,
        n_reader: int,
        n_local_reader: int,
        local_reader_ranks: list[int] | None = None,
        max_chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        max_chunks: int = DEFAULT_CHUNKS,
        *,
        name: str = "queue",
    ) -> None:
        if n_local_reader != n_reader:
            raise ValueError(
                f'MessageQueue "{name}": {n_local_reader} of {n_reader} readers are on this host; '
                "for the others use MessageQueue.create_from_process_group"
            )
        ranks = list(range(n_local_reader)) if local_reader_ranks is None else local_reader_ranks
        if len(ranks) != n_local_reader or len(set(ranks)) != len(ranks):
            raise ValueError(
                f'MessageQueue "{name}": local_reader_ranks is {ranks}, which are not '
                f"{n_local_reader} different ranks"
            )
        writer = extension().QueueWriter(name, n_reader, max_chunks, max_chunk_bytes)
        self._set(name, tuple(ranks), writer)

    def _set(self, name: str, local_reader_ranks: tuple[int, ...], writer: Any = None) -> None:
        """All attributes. An end has a writer, a reader, or neither if it is alone or remote."""
        self.name = name
        self.local_reader_ranks = local_reader_ranks
        self._writer = writer
        self._reader: Any = None
        self._sender: _remote_queue.Sender | None = None
        self._receiver: _remote_queue.Receiver | None = None
        self._is_writer = True
        self._closed = False

    @property
    def is_writer(self) -> bool:
        """Whether this end may enqueue; else it may dequeue."""
        return self._is_writer

    def __repr__(self) -> str:
        end = "writer" if self._is_writer else "reader"
        return f"<MessageQueue {self.name!r}, {end}{', closed' if self._closed else ''}>"

    # ---- who takes part ------------------------------------------------------------------------

    def export_handle(self) -> Handle:
        """The writer's handle, for `create_from_handle`. Valid while this object is open.

        Raises:
            RuntimeError: on a reader.
        """
        self._check("export_handle", writer=True)
        address = None if self._writer is None else self._writer.address
        return Handle(address, self.local_reader_ranks, self.name)

    @staticmethod
    def create_from_handle(handle: Handle, rank: int) -> MessageQueue:
        """The end of the reader called `rank`. Each attaches once, in a process of its own or not.

        Raises:
            ValueError: `rank` is no local reader or is taken, or the queue is of another host, PID
                namespace or user.
            torch.distributed.DistBackendError: the writer has ended or closed the queue, or the
                kernel does not let this process at its descriptors.
        """
        if handle.address is None or rank not in handle.local_reader_ranks:
            raise ValueError(
                f'MessageQueue "{handle.name}": rank {rank} is no reader on the writer\'s host; '
                f"those are {list(handle.local_reader_ranks)}"
            )
        queue = MessageQueue.__new__(MessageQueue)
        queue._set(handle.name, handle.local_reader_ranks)
        queue._is_writer = False
        number = handle.local_reader_ranks.index(rank)
        queue._reader = extension().QueueReader(handle.address, number)
        return queue

    @staticmethod
    def create_from_process_group(
        pg: dist.ProcessGroup,
        max_chunk_bytes: int = DEFAULT_CHUNK_BYTES,
        max_chunks: int = DEFAULT_CHUNKS,
        writer_rank: int = 0,
        *,
        name: str | None = None,
        blocking: bool = True,
    ) -> MessageQueue:
        """A queue whose writer is one rank of a group and whose readers are all others.

        Collective over the group, which must carry CPU tensors. Which ranks are on the writer's
        host is found out, not assumed; the others get each message through the group, by send and
        receive.

        Args:
            pg: the group; one rank alone gives a queue without readers.
            writer_rank: in the group.
            name: for messages; the group's name if not given.
            blocking: return when every reader on the writer's host has attached.

        Raises:
            ValueError: `writer_rank` is no rank of the group; on all ranks, arguments that a ring
                cannot have.
            torch.distributed.DistBackendError: the group failed; on all ranks, a rank of the
                writer's host could not attach.
        """
        rank, world = pg.rank(), pg.size()
        if not 0 <= writer_rank < world:
            raise ValueError(
                f"create_from_process_group: writer_rank is {writer_rank}; the group has the ranks "
                f"0 to {world - 1}"
            )
        name = pg.group_name if name is None else name
        hosts = _remote_queue.gather(pg, _remote_queue.host_identity())
        local, remote = _remote_queue.split(hosts, writer_rank)
        queue = MessageQueue.__new__(MessageQueue)
        queue._set(name, tuple(local))
        queue._is_writer = rank == writer_rank
        try:
            queue._join(pg, writer_rank, remote, max_chunk_bytes, max_chunks)
        except BaseException:
            queue.close()
            raise
        if blocking:
            queue.wait_until_ready()
        return queue

    def _join(
        self, pg: dist.ProcessGroup, writer_rank: int, remote: list[int], size: int, chunks: int
    ) -> None:
        """Opens this rank's end, or raises on all ranks if one could not."""
        problem: Exception | None = None
        offer: tuple[Handle, int] | None = None
        if self._is_writer:
            try:
                if self.local_reader_ranks:
                    readers = len(self.local_reader_ranks)
                    self._writer = extension().QueueWriter(self.name, readers, chunks, size)
                if remote:
                    self._sender = _remote_queue.Sender(pg, self.name, remote, chunks)
                tag = 0 if self._sender is None else self._sender.tag
                offer = self.export_handle(), tag
            except Exception as error:
                problem = error
        offer = _remote_queue.gather(pg, offer)[writer_rank]
        if not self._is_writer and offer is not None:
            handle, tag = offer
            try:
                if pg.rank() in self.local_reader_ranks:
                    self._reader = self.create_from_handle(handle, pg.rank())._reader
                else:
                    self._receiver = _remote_queue.Receiver(pg, self.name, writer_rank, tag)
            except Exception as error:
                problem = error
        answers = _remote_queue.gather(pg, None if problem is None else str(problem))
        if problem is not None:
            raise problem
        for other, words in enumerate(answers):
            if words is not None:
                raise dist.DistBackendError(
                    f'MessageQueue "{self.name}": rank {other} of the group could not open its '
                    f"end: {words}"
                )

    def wait_until_ready(self, timeout: float | None = None) -> None:
        """Blocks until every reader on the writer's host has attached; all ends call it.

        It is not needed: a message waits for readers that come later.

        Raises:
            TimeoutError: a reader has not come; the message names it.
            torch.distributed.DistBackendError: as in `enqueue` and `dequeue`.
        """
        end = self._writer or self._reader
        self._check("wait_until_ready", writer=None)
        if end is not None:
            end.wait_until_ready(timeout)

    # ---- messages ------------------------------------------------------------------------------

    def enqueue(self, obj: Any, timeout: float | None = None) -> None:
        """Sends an object to every reader; returns when it is copied, not when it is read.

        An object that needs more than max_chunks chunks returns as its readers take it.

        Args:
            obj: anything that pickles. CPU tensors and NumPy arrays travel as they lie in memory.
            timeout: seconds to wait for room; None: as long as all readers live.

        Raises:
            TimeoutError: no room; the message names the readers. The object was not sent, the queue
                is usable.
            torch.distributed.DistBackendError: a reader's process has ended, all readers have
                closed, or this end is closed. The queue stays unusable for all.
            RuntimeError: on a reader.
        """
        writer, sender = self._writer, self._sender
        self._check("enqueue", writer=True)
        header, buffers = pack(obj)
        if sender is not None:  # all waiting comes before any sending: all readers get it, or none
            begun = time.monotonic()
            sender.wait_for_room(None if timeout is None else begun + timeout)
            timeout = timeout and max(0.0, begun + timeout - time.monotonic())
        if writer is not None:
            writer.write([header, *buffers], timeout)
        if sender is not None:
            sender.send(_remote_queue.Kind.OBJECT, [header, *buffers])

    def dequeue(self, timeout: float | None = None) -> Any:
        """Returns the next object. Its tensors and arrays are the caller's own, and writable.

        Up to 64 MiB of what received objects lay in is kept for the next, until this end is closed.

        Args:
            timeout: seconds to wait for a message; None: as long as the writer lives.

        Raises:
            TimeoutError: no message; the queue is usable (for a reader on another host: if the
                group's backend leaves it so).
            ValueError: the next message was written by `acquire_write`.
            torch.distributed.DistBackendError: nothing more will come: the writer or another reader
                has ended, or the writer or this end is closed. What was sent before comes first.
            RuntimeError: on the writer.
        """
        reader, receiver = self._reader, self._receiver
        self._check("dequeue", writer=False)
        if receiver is not None:
            header, *buffers = receiver.receive(_remote_queue.Kind.OBJECT, timeout)
        else:
            header, *buffers = reader.read(timeout)
        return unpack(header, buffers)

    @contextlib.contextmanager
    def acquire_write(self, timeout: float | None = None) -> Iterator[memoryview]:
        """A chunk to be filled in place: a memoryview of max_chunk_bytes, of undefined content.

        It is sent, all of it, when the block is left, and not if that is by an exception. The view
        is not to be used afterwards. Readers take it by `acquire_read`.

        Raises:
            As `enqueue`; ValueError for another call on this end inside the block.
        """
        writer = self._writer
        self._check("acquire_write", writer=True)
        if self._sender is not None or writer is None:
            raise NotImplementedError(
                f'MessageQueue "{self.name}": acquire_write needs all readers on the writer\'s '
                "host, and at least one; use enqueue"
            )
        view = memoryview(writer.begin_raw(timeout))
        complete = False
        try:
            yield view
            complete = True
        finally:
            _release(view)
            writer.end_raw(complete)

    @contextlib.contextmanager
    def acquire_read(self, timeout: float | None = None) -> Iterator[memoryview]:
        """The next message of `acquire_write` in place: a read-only memoryview of max_chunk_bytes.

        Valid inside the block, even if another thread closes this end meanwhile; leaving it,
        however, frees the chunk for the writer.

        Raises:
            As `dequeue`; ValueError also if the next message was written by `enqueue`.
        """
        reader = self._reader
        self._check("acquire_read", writer=False)
        if reader is None:
            raise NotImplementedError(
                f'MessageQueue "{self.name}": acquire_read is for readers on the writer\'s host'
            )
        view = memoryview(reader.begin_raw(timeout))
        try:
            yield view
        finally:
            _release(view)
            reader.end_raw()

    def broadcast_object(self, obj: Any = None, timeout: float | None = None) -> Any:
        """`enqueue(obj)` on the writer, which gets `obj` itself back; `dequeue()` on a reader."""
        if self._is_writer:
            self.enqueue(obj, timeout)
            return obj
        return self.dequeue(timeout)

    # ---- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends this end and gives its memory back. Calls of it that wait in other threads raise.

        Readers may still take what a closed writer sent, then raise. A closed reader is not waited
        for any more, once its acquire_read is left. Twice is the same as once; dropping the object
        is the same.
        """
        self._closed = True  # before the ends go: other calls take them first and look here then
        for end in (self._writer, self._reader, self._sender, self._receiver):
            if end is not None:
                end.close()
        self._writer = self._reader = self._sender = self._receiver = None

    shutdown = close

    def __enter__(self) -> MessageQueue:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check(self, attempted: str, writer: bool | None) -> None:
        if writer is not None and writer != self._is_writer:
            this, other = ("writer", "a reader") if self._is_writer else ("reader", "the writer")
            raise RuntimeError(
                f'MessageQueue "{self.name}": {attempted} is for {other}; this end is a {this}'
            )
        if self._closed:
            raise dist.DistBackendError(
                f'MessageQueue "{self.name}": {attempted} after close; make a new queue'
            )


def _release(view: memoryview) -> None:
    """Makes later use of the view an error. What was made from it and lives cannot be stopped."""
    try:
        view.release()
    except BufferError:
        _log.warning("an array made from a chunk of a MessageQueue outlives its block")
