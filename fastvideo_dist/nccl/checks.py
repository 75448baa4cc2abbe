"""The state of a communicator, and what can be wrong with the arguments of its calls."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from fastvideo_dist._compat import extension
from fastvideo_dist.nccl.buffers import buffer_of
from fastvideo_dist.nccl.errors import NcclInvalid, NcclUnsupported
from fastvideo_dist.nccl.grouping import Deferred, defer, is_open
from fastvideo_dist.nccl.reductions import STANDARD, CustomRedOp
from fastvideo_dist.nccl.types import DTYPES, NcclRedOp

if TYPE_CHECKING:
    from fastvideo_dist._C import Buffer, Communicator, Reduction

__all__ = ["Checks", "translated"]

_alike = extension().alike


class Checks:
    """Each method returns what a call needs, or raises NcclInvalid with the call, the communicator,
    the rank and the values that disagree."""

    __slots__ = (
        "__weakref__",
        "_customs",
        "_device",
        "_name",
        "_rank",
        "_raw",
        "_size",
        "_splits",
        "_where",
    )

    def __init__(self) -> None:
        """A null communicator, as `split` gives it to ranks without a color; see `initialize`."""
        self._raw: Communicator | None = None
        self._forget()

    def _forget(self) -> None:
        self._raw = None
        self._rank = self._size = self._splits = 0
        self._name = self._where = ""
        self._device: torch.device | None = None
        self._customs: weakref.WeakSet[CustomRedOp] = weakref.WeakSet()

    def _live(self, what: str) -> Communicator:
        raw = self._raw
        if raw is None:
            raise NcclInvalid(
                f"Cannot {what}: Communicator not initialized; it is null, or was destroyed or "
                "aborted"
            )
        return raw

    def _do(self, call: Callable[..., Any], *arguments: Any) -> None:
        if is_open():
            start = partial(translated, call, *arguments)
            defer(Deferred(self._where, self._rank, start))
            return
        try:  # as in `translated`; this is the way of every short call
            call(*arguments)
        except NotImplementedError as error:
            raise NcclUnsupported(str(error)) from None
        except ValueError as error:
            raise NcclInvalid(str(error)) from None

    def _refuse(self, what: str, why: str) -> NoReturn:
        raise NcclInvalid(f'{what} on "{self._name}", rank {self._rank} of {self._size}: {why}')

    def _buffer(self, what: str, name: str, obj: Any, written: bool) -> Buffer:
        try:
            buffer = buffer_of(obj, written)
        except (TypeError, ValueError) as error:
            self._refuse(what, f"{name} {error}")
        if self._device is not None and not _same_device(buffer.device, self._device):
            self._refuse(
                what,
                f"{name} is on device {buffer.device}, but communicator is on device "
                f"{self._device}. Buffers must be on the same device as the communicator.",
            )
        return buffer

    def _pair(self, what: str, send: Buffer, recv: Buffer) -> None:
        if _alike(send, recv):
            return
        if send.dtype != recv.dtype:
            self._refuse(
                what,
                f"Dtype mismatch: sendbuf has dtype {send.dtype}, recvbuf has dtype {recv.dtype}",
            )
        self._refuse(what, f"sendbuf is on device {send.device}, recvbuf on {recv.device}")

    def _share(self, what: str, send: Buffer) -> int:
        """Elements of `sendbuf` for each rank."""
        count, rest = divmod(send.count, self._size)
        if count == 0 or rest != 0:
            self._refuse(
                what,
                f"sendbuf has {send.count} elements, which do not divide among {self._size} ranks; "
                "it must have the same number for each, and at least one",
            )
        return count

    def _miscounted(self, what: str, name: str, how: str, wanted: int, got: int) -> NoReturn:
        self._refuse(
            what, f"Buffer count mismatch: {name} must have {how} {wanted} elements, got {got}"
        )

    def _overlapping(self, what: str, inner: str, place: str) -> NoReturn:
        self._refuse(
            what, f"sendbuf and recvbuf overlap; in place, {inner} begins exactly at {place}"
        )

    def _int(self, what: str, name: str, value: Any) -> int:
        try:
            return operator.index(value)
        except TypeError:
            self._refuse(what, f"{name} must be an int, got {type(value).__name__}")

    def _root(self, what: str, root: Any) -> int:
        found = self._int(what, "root", root)
        if not 0 <= found < self._size:
            self._refuse(what, f"root {found} is no rank; there are 0 to {self._size - 1}")
        return found

    def _reduction(self, what: str, op: Any, send: Buffer) -> Reduction:
        if isinstance(op, NcclRedOp):
            return STANDARD[op]
        if not isinstance(op, CustomRedOp):  # nor a number: torch's reductions have others
            self._refuse(what, f"op must be an NcclRedOp or a CustomRedOp, got {op!r}")
        return self._custom(what, op, send)

    def _custom(self, what: str, op: CustomRedOp, send: Buffer) -> Reduction:
        reduction = op._reduction
        if reduction is None:
            self._refuse(what, "op has been closed and is no longer valid")
        if op not in self._customs:
            self._refuse(what, "op was created by another communicator")
        if send.dtype == "bool" or DTYPES[send.dtype] != op.datatype:
            self._refuse(
                what,
                f"Dtype mismatch: op was created for {op.datatype.name}, sendbuf has dtype "
                f"{send.dtype}",
            )
        return reduction

    def _stream(self, what: str, stream: Any, buffer: Buffer) -> int | None:
        """The handle; None for torch's current stream, and on the CPU."""
        if buffer.is_cpu:
            if stream is not None:
                self._refuse(
                    what,
                    "a stream was given, but the buffers are in CPU memory; such a call is done "
                    "when it returns",
                )
            return None
        if stream is None:
            return None
        device = getattr(stream, "device", buffer.device)
        if device != buffer.device:
            self._refuse(what, f"the stream is of device {device}, buffers are on {buffer.device}")
        if hasattr(stream, "__cuda_stream__"):
            return int(stream.__cuda_stream__()[1])
        return self._int(what, "stream", getattr(stream, "cuda_stream", stream))


def translated(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the extension refuses by itself, as this package's errors."""
    try:
        return call(*arguments)
    except NotImplementedError as error:
        raise NcclUnsupported(str(error)) from None
    except ValueError as error:
        raise NcclInvalid(str(error)) from None


def _same_device(found: torch.device, wanted: torch.device) -> bool:
    return found.type == wanted.type and wanted.index in (None, found.index)
