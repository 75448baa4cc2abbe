"""`Communicator`: what nccl4py's class of this name does, on CPU memory through shared memory too.

Here are the rules of the calls: which buffer is needed where, which counts fit, what may overlap.
The memory is moved in csrc/face.cpp, which relies on them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fastvideo_dist._compat import extension
from fastvideo_dist.nccl.checks import translated
from fastvideo_dist.nccl.errors import NcclInvalid
from fastvideo_dist.nccl.grouping import Deferred, defer, is_open
from fastvideo_dist.nccl.place import Place
from fastvideo_dist.nccl.reductions import CustomRedOp, pre_mul_sum
from fastvideo_dist.nccl.types import (
    Buffer,
    IsStreamType,
    NcclDataType,
    NcclRedOp,
    Stream,
    SupportsCAI,
    SupportsDLPack,
)

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["Communicator"]

_apart = extension().apart


class Communicator(Place):
    """One rank's place in a group of ranks that exchange memory.

    Calls are collective: all ranks make the same ones in the same order, with equal counts, types
    and roots. A call on CPU memory is done when it returns; it may be interrupted by Ctrl-C, and
    another thread may `abort` it. Two threads that call at once wait for each other; sends and
    receives go beside that.

    Buffers must be contiguous; results go only into writable ones. `sendbuf` and `recvbuf` may not
    overlap, except exactly where a call says "in place".

    Raises, from every call:
        NcclInvalid: the arguments are wrong, or the communicator is not initialized (any more).
            Nothing was sent; the other ranks wait until this rank calls again, leaves, or the
            timeout passes.
        NcclUnsupported: (an NcclInvalid and a NotImplementedError) CUDA memory, as long as no
            transport serves it; reductions of float8.
        torch.distributed.DistBackendError: the ranks disagree on the call, one has died, aborted,
            left or not come in time, or this is a forked child. The communicator stays unusable;
            `destroy` it.
    """

    __slots__ = ()

    def allreduce(
        self,
        sendbuf: Buffer | SupportsDLPack | SupportsCAI,
        recvbuf: Buffer | SupportsDLPack | SupportsCAI,
        op: NcclRedOp | CustomRedOp,
        *,
        stream: Stream | IsStreamType | int | None = None,
    ) -> None:
        """`reduce` without a root: every rank gets the result."""
        self._reduce("allreduce", sendbuf, recvbuf, op, None, stream)

    def reduce(
        self,
        sendbuf: Buffer | SupportsDLPack | SupportsCAI,
        recvbuf: Buffer | SupportsDLPack | SupportsCAI | Any,
        op: NcclRedOp | CustomRedOp,
        root: int | None = None,
        *,
        stream: Stream | IsStreamType | int | None = None,
    ) -> None:
        """Combines the elements of all ranks' `sendbuf`, in the order of the ranks.

        float16 and bfloat16 are combined in float32 and rounded once; integers wrap, and AVG of
        them truncates towards zero; SUM and MAX of bool are "any", PROD and MIN "all".

        Args:
            sendbuf: count elements; the count is its length.
            recvbuf: at least as many, of the same type. With a root only there, elsewhere ignored.
                In place: the same memory.
            op: a reduction, or a custom one of this communicator and of the buffers' type.
            root: who gets the result; None: everybody.
            stream: for CUDA memory; torch's current stream if None. None for CPU memory.
        """
        self._reduce("reduce", sendbuf, recvbuf, op, root, stream)

    def _reduce(
        self, what: str, sendbuf: Any, recvbuf: Any, op: Any, root: int | None, stream: Any
    ) -> None:
        raw = self._live(what)
        if root is not None:
            root = self._root(what, root)
        send = self._buffer(what, "sendbuf", sendbuf, False)
        recv, count = None, send.count
        if root is None or root == self._rank:
            recv = self._buffer(what, "recvbuf", recvbuf, True)
            self._pair(what, send, recv)
            if recv.count < count:
                self._miscounted(what, "recvbuf", "at least", count, recv.count)
            if not _apart(send, count, recv, count, 0):
                self._overlapping(what, "sendbuf", "the beginning of recvbuf")
        reduction = self._reduction(what, op, send)
        handle = self._stream(what, stream, send)
        self._do(raw.reduce, send, recv, count, reduction, root, handle)

    def broadcast(
        self,
        sendbuf: Buffer | SupportsDLPack | SupportsCAI | Any,
        recvbuf: Buffer | SupportsDLPack | SupportsCAI,
        root: int,
        *,
        stream: Stream | IsStreamType | int | None = None,
    ) -> None:
        """Copies the root's `sendbuf` to every rank's `recvbuf`.

        Args:
            sendbuf: on the root as many elements as `recvbuf`, of the same type; elsewhere ignored.
                In place: the same memory as `recvbuf`.
            recvbuf: the count is its length.
            root, stream: as in `reduce`.
        """
        raw = self._live("broadcast")
        root = self._root("broadcast", root)
        recv = self._buffer("broadcast", "recvbuf", recvbuf, True)
        send = None
        if root == self._rank:
            send = self._buffer("broadcast", "sendbuf", sendbuf, False)
            self._pair("broadcast", send, recv)
            if send.count != recv.count:
                self._miscounted("broadcast", "recvbuf", "exactly", send.count, recv.count)
            if not _apart(send, send.count, recv, recv.count, 0):
                self._overlapping("broadcast", "sendbuf", "the beginning of recvbuf")
        self._do(raw.broadcast, send, recv, root, self._stream("broadcast", stream, recv))

    def allgather(
        self,
        sendbuf: Buffer | SupportsDLPack | SupportsCAI,
        recvbuf: Buffer | SupportsDLPack | SupportsCAI,
        *,
        stream: Stream | IsStreamType | int | None = None,
    ) -> None:
        """`gather` without a root: every rank gets the result."""
        self._gather("allgather", sendbuf, recvbuf, None, stream)

    def gather(
        self,
        sendbuf: Buffer | SupportsDLPack | SupportsCAI,
        recvbuf: Buffer | SupportsDLPack | SupportsCAI | Any,
        root: int | None = None,
        *,
        stream: Stream | IsStreamType | int | None = None,
    ) -> None:
        """Joins the `sendbuf` of all ranks, by rank, in `recvbuf`.

        Args:
            sendbuf: count elements; the count is its length. In place: element rank * count of
                `recvbuf` is its first.
            recvbuf: at least nranks * count elements of the same type. With a root only there,
                elsewhere ignored.
            root: who gets the result; None: everybody.
            stream: as in `reduce`.
        """
        self._gather("gather", sendbuf, recvbuf, root, stream)

    def _gather(self, what: str, sendbuf: Any, recvbuf: Any, root: int | None, stream: Any) -> None:
        raw = self._live(what)
        if root is not None:
            root = self._root(what, root)
        send = self._buffer(what, "sendbuf", sendbuf, False)
        recv = None
        if root is None or root == self._rank:
            recv = self._buffer(what, "recvbuf", recvbuf, True)
            self._pair(what, send, recv)
            whole = self._size * send.count
            if recv.count < whole:
                self._miscounted(what, "recvbuf", "at least", whole, recv.count)
            if not _apart(send, send.count, recv, whole, self._rank * send.count):
                self._overlapping(what, "sendbuf", f"element {self._rank * send.count} of recvbuf")
        self._do(raw.gather, send, recv, root, self._stream(what, stream, send))

    def reduce_scatter(
        self,
        sendbuf: Buffer | SupportsDLPack | SupportsCAI,
        recvbuf: Buffer | SupportsDLPack | SupportsCAI,
        op: NcclRedOp | CustomRedOp,
        *,
        stream: Stream | IsStreamType | int | None = None,
    ) -> None:
        """Combines the `sendbuf` of all ranks, as `reduce`; rank i gets the i-th part.

        Args:
            sendbuf: nranks * count elements, at least one for each rank.
            recvbuf: at least count elements of the same type. In place: its first is element
                rank * count of `sendbuf`.
            op, stream: as in `reduce`.
        """
        what = "reduce_scatter"
        raw = self._live(what)
        send = self._buffer(what, "sendbuf", sendbuf, False)
        recv = self._buffer(what, "recvbuf", recvbuf, True)
        self._pair(what, send, recv)
        count = self._share(what, send)
        if recv.count < count:
            self._miscounted(what, "recvbuf", "at least", count, recv.count)
        if not _apart(recv, count, send, send.count, self._rank * count):
            self._overlapping(what, "recvbuf", f"element {self._rank * count} of sendbuf")
        reduction = self._reduction(what, op, send)
        handle = self._stream(what, stream, send)
        self._do(raw.reduce_scatter, send, recv, count, reduction, handle)

    def alltoall(
        self,
        sendbuf: Buffer | SupportsDLPack | SupportsCAI,
        recvbuf: Buffer | SupportsDLPack | SupportsCAI,
        *,
        stream: Stream | IsStreamType | int | None = None,
    ) -> None:
        """Sends the j-th part of `sendbuf` to rank j, where it becomes the part of this rank.

        Args:
            sendbuf: nranks * count elements, at least one for each rank.
            recvbuf: at least as many, of the same type; apart from `sendbuf`.
            stream: as in `reduce`.
        """
        what = "alltoall"
        raw = self._live(what)
        send = self._buffer(what, "sendbuf", sendbuf, False)
        recv = self._buffer(what, "recvbuf", recvbuf, True)
        self._pair(what, send, recv)
        count = self._share(what, send)
        if recv.count < send.count:
            self._miscounted(what, "recvbuf", "at least", send.count, recv.count)
        if not _apart(send, send.count, recv, send.count, None):
            self._refuse(what, "sendbuf and recvbuf share memory; alltoall is not done in place")
        self._do(raw.all_to_all, send, recv, count, self._stream(what, stream, send))

    def scatter(
        self,
        sendbuf: Buffer | SupportsDLPack | SupportsCAI | Any,
        recvbuf: Buffer | SupportsDLPack | SupportsCAI,
        root: int,
        *,
        stream: Stream | IsStreamType | int | None = None,
    ) -> None:
        """Sends the i-th part of the root's `sendbuf` to rank i.

        Args:
            sendbuf: on the root exactly nranks * count elements; elsewhere ignored.
            recvbuf: the count is its length, at least 1. In place, on the root: its first is
                element root * count of `sendbuf`.
            root, stream: as in `reduce`.
        """
        what = "scatter"
        raw = self._live(what)
        root = self._root(what, root)
        recv = self._buffer(what, "recvbuf", recvbuf, True)
        send = None
        if root == self._rank:
            send = self._buffer(what, "sendbuf", sendbuf, False)
            self._pair(what, send, recv)
            count = self._share(what, send)
            if recv.count != count:
                self._miscounted(what, "recvbuf", "exactly", count, recv.count)
            if not _apart(recv, count, send, send.count, self._rank * count):
                self._overlapping(what, "recvbuf", f"element {self._rank * count} of sendbuf")
        self._do(raw.scatter, send, recv, root, self._stream(what, stream, recv))

    def create_pre_mul_sum(
        self,
        scalar: int | float | ndarray | Buffer | SupportsDLPack | SupportsCAI,
        datatype: NcclDataType | None = None,
    ) -> CustomRedOp:
        """A reduction that sums contributions multiplied by `scalar`: an average with 1 / nranks.

        Not collective, but all ranks of a call must give the same scalar. It is read here and now.

        Args:
            scalar: a number, or a buffer of one element. Numbers and NumPy arrays are rounded to
                `datatype`, an integer type takes only integers within its range.
            datatype: of the buffers to be reduced. If None: INT64 for an int, FLOAT64 for a float,
                else the buffer's own, which any other buffer than NumPy's must equal.

        Raises:
            NcclInvalid: what is no number or one-element buffer, or does not fit `datatype`.
        """
        self._live("create_pre_mul_sum")
        try:
            custom = pre_mul_sum(scalar, datatype)
        except NcclInvalid as error:
            self._refuse("create_pre_mul_sum", error.msg)
        self._customs.add(custom)
        return custom

    # ---- from one rank to another --------------------------------------------------------------

    def send(
        self,
        sendbuf: Buffer | SupportsDLPack | SupportsCAI,
        peer: int,
        *,
        stream: Stream | IsStreamType | int | None = None,
    ) -> None:
        """Sends all elements to rank `peer`, which calls `recv` with as many of the same type.

        It may wait for that. Ranks that send to each other do so inside `group()`; only there may
        a rank send to itself.
        """
        self._transfer("send", "sendbuf", sendbuf, peer, stream)

    def recv(
        self,
        recvbuf: Buffer | SupportsDLPack | SupportsCAI,
        peer: int,
        *,
        stream: Stream | IsStreamType | int | None = None,
    ) -> None:
        """Receives what rank `peer` sends next, as many elements as `recvbuf` has. See `send`."""
        self._transfer("recv", "recvbuf", recvbuf, peer, stream)

    def _transfer(self, what: str, name: str, obj: Any, peer: int, stream: Any) -> None:
        raw = self._live(what)
        other = self._int(what, "peer", peer)
        if not 0 <= other < self._size:
            self._refuse(what, f"peer {other} is no rank; there are 0 to {self._size - 1}")
        buffer = self._buffer(what, name, obj, what == "recv")
        handle = self._stream(what, stream, buffer)
        start = partial(translated, raw.send if what == "send" else raw.recv, buffer, other, handle)
        if is_open():

            def copy(sent: Any) -> object:
                return translated(raw.copy, sent, buffer, handle)

            defer(Deferred(self._where, self._rank, start, what, other, buffer, copy))
        elif other == self._rank:
            self._refuse(what, f"peer {other} is this rank itself; that is possible inside group()")
        else:
            start().wait()
