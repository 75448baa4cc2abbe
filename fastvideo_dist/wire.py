"""Messages of a head and some buffers, over whatever moves byte tensors in order.

A receiver does not know how long a message is, so each begins with a frame of fixed size. What is
short rides in the frame; the rest of the head and the small buffers follow as one piece; each
large buffer goes straight from the sender's memory into the receiver's. So most messages are one
transfer, and no large tensor is packed or unpacked.

    frame    | magic, head bytes, body bytes | head | small buffers | 0 |   fixed size by kind
    body     | head | small buffers |            only if they do not fit into the frame
    large[i] | as it is                          one transfer each

Small buffers begin at multiples of 64 bytes.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastvideo_dist._compat import extension

__all__ = [
    "SMALL_BYTES",
    "Buffer",
    "Kind",
    "Memory",
    "bytes_of",
    "frame_for",
    "memory_of",
    "pack",
    "unpack",
]

# A tensor, contiguous and of any device, or bytes in the CPU's memory.
Buffer = Tensor | memoryview

# From here on an own transfer, at about 10 us, is cheaper than two copies.
SMALL_BYTES = 32 * 1024
_ALIGNMENT = 64
_START = struct.Struct("<QQQ")
_START_BYTES = _ALIGNMENT
_MAGIC = 0x64_69_73_74_66_76_64_31


class Kind(enum.Enum):
    """What a message carries; the value is its frame's length in bytes.

    They differ so that ranks which disagree on the call disagree on the size of its first
    transfer, which the transport notices on all of them.
    """

    OBJECT = 4096
    TENSOR_DICT = 4096 + 64
    TENSOR = 4096 + 128


class Memory:
    """Fresh memory, seen as a tensor of uint8 and through Python's buffer protocol."""

    # The device is named here and wherever else the layer makes a tensor: the user may have set
    # another default, such as "meta" while a model is built.

    def __init__(self, nbytes: int) -> None:
        self.tensor = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
        self.view = memoryview(extension().memory_of(self.tensor))


def frame_for(kind: Kind) -> Memory:
    return Memory(kind.value)


def bytes_of(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor as uint8, of one dimension."""
    return tensor.reshape(-1).view(torch.uint8)


def memory_of(buffer: Buffer) -> memoryview:
    """The bytes of a buffer in the CPU's memory."""
    return buffer if isinstance(buffer, memoryview) else memoryview(extension().memory_of(buffer))


def tensor_of(buffer: Buffer) -> Tensor:
    """The buffer itself, or its bytes; a copy if those are read-only."""
    if isinstance(buffer, Tensor):
        return buffer
    if buffer.readonly:  # torch.frombuffer would warn that a tensor can be written to
        buffer = memoryview(bytearray(buffer))
    return torch.frombuffer(buffer, dtype=torch.uint8)


def is_large(buffer: Buffer) -> bool:
    """Whether a buffer is moved by itself: long, or not empty and not in the CPU's memory."""
    nbytes = buffer.nbytes
    return nbytes > SMALL_BYTES or (nbytes > 0 and isinstance(buffer, Tensor) and not buffer.is_cpu)


def pack(kind: Kind, head: bytes, buffers: Sequence[Buffer]) -> list[Tensor]:
    """The transfers of a message, in order.

    Args:
        head: must tell the receiver the sizes of all buffers.
        buffers: the large ones are not copied: they must stay as they are until the transfers
            are done.
    """
    frame = frame_for(kind)
    transfers = pack_into(frame, kind, head, buffers)
    return [*transfers, *(tensor_of(buffer) for buffer in buffers if is_large(buffer))]


def fits(kind: Kind, head: bytes, buffers: Sequence[Buffer]) -> bool:
    """Whether the frame is the whole message."""
    if any(is_large(buffer) for buffer in buffers):
        return False
    return _body_bytes(head, buffers) <= kind.value - _START_BYTES


def _body_bytes(head: bytes, small: Sequence[Buffer]) -> int:
    return _aligned(len(head)) + sum(_aligned(buffer.nbytes) for buffer in small)


def pack_into(frame: Memory, kind: Kind, head: bytes, buffers: Sequence[Buffer]) -> list[Tensor]:
    """As `pack`, with a frame that is there and may be longer; without the large buffers."""
    small = [buffer for buffer in buffers if not is_large(buffer)]
    body_bytes = _body_bytes(head, small)
    _START.pack_into(frame.view, 0, _MAGIC, len(head), body_bytes)
    rest = None if body_bytes <= kind.value - _START_BYTES else Memory(body_bytes)
    view = frame.view[_START_BYTES:] if rest is None else rest.view
    view[: len(head)] = head
    at = _aligned(len(head))
    for buffer in small:
        if buffer.nbytes:
            view[at : at + buffer.nbytes] = memory_of(buffer)
            at += _aligned(buffer.nbytes)
    return [frame.tensor] if rest is None else [frame.tensor, rest.tensor]


def unpack(
    kind: Kind,
    frame: Memory,
    receive: Callable[[Tensor], None],
    targets_of: Callable[[memoryview], Sequence[Buffer]],
) -> list[Tensor]:
    """Takes apart a message whose frame has come.

    Args:
        receive: waits for one tensor.
        targets_of: makes memory for each buffer, of what the head says; a tensor for a large one.

    Returns:
        The large buffers, to be received in this order.

    Raises:
        RuntimeError: the frame is none of this project's.
    """
    magic, head_bytes, body_bytes = _START.unpack_from(frame.view, 0)
    if magic != _MAGIC:
        raise RuntimeError(
            f"expected a message of kind {kind.name} and received {kind.value} bytes that are "
            "none; do the ranks make the same calls in the same order?"
        )
    view = frame.view[_START_BYTES:]
    if body_bytes > kind.value - _START_BYTES:
        rest = Memory(body_bytes)
        receive(rest.tensor)
        view = rest.view
    targets = targets_of(view[:head_bytes])
    at = _aligned(head_bytes)
    for target in targets:
        if target.nbytes and not is_large(target):
            memory_of(target)[:] = view[at : at + target.nbytes]
            at += _aligned(target.nbytes)
    return [target for target in targets if isinstance(target, Tensor) and is_large(target)]


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT
