"""Python objects as a pickle and, beside it, the memory of the tensors and arrays in them.

Pickle protocol 5 with buffers out of band: the bytes of a CPU tensor, of a NumPy array or of a
large bytes object never go through the pickle; they are taken from where they lie and given back
as memory. What belongs to other devices, and subclasses of Tensor and ndarray, pickle as they say
themselves.

Two tensors that share memory arrive as two that do not; the same tensor twice arrives as the same.
Reading a pickle runs what it says. The bytes must come from a process that is trusted.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastvideo_dist._compat import extension

__all__ = ["flatten", "pack", "unflatten", "unpack"]

_LARGE = 64 << 10  # bytes objects; pickle's own limit
_ALIGNMENT = 64  # of buffers in a flat tensor; no dtype asks for more
_WORD = 8

# In a pickle, bytes(the next buffer). The bytes object itself if that is what the buffer is.
_BYTES_OF_BUFFER = b"cbuiltins\nbytes\n" + pickle.NEXT_BUFFER + pickle.TUPLE1 + pickle.REDUCE


def pack(obj: object) -> tuple[bytes, list[memoryview]]:
    """The pickle of an object and the buffers that belong to it.

    Tensors that are contiguous, or dense in another order (transposed, channels last), are not
    copied: their buffers are their own memory, and must be sent before the tensors change. Others
    are made contiguous.

    Returns:
        The pickle, and one-dimensional memoryviews of bytes in the order `unpack` wants them.

    Raises:
        Whatever the object's own pickling raises; nothing has happened then.
    """
    buffers: list[pickle.PickleBuffer] = []
    stream = _Stream(buffers)
    _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(obj)
    return b"".join(stream.pieces), [buffer.raw() for buffer in buffers]


def unpack(header: Any, buffers: Iterable[Any]) -> Any:
    """The object that `pack` took apart.

    Args:
        header: the pickle, as bytes or anything with the buffer protocol.
        buffers: the memory of its tensors and arrays. It is not copied: they live in it, and keep
            it. A read-only one gives a read-only array; a tensor gets a copy of it. Bytes objects
            are copies, unless the buffer is one itself.
    """
    return pickle.loads(header, buffers=buffers)


def flatten(obj: object) -> Tensor:
    """An object as one uint8 tensor on the CPU, to be sent by whatever sends tensors."""
    header, buffers = pack(obj)
    parts = [memoryview(header), *buffers]
    offsets = [_aligned(_WORD * (1 + len(parts)))]
    for part in parts:
        offsets.append(_aligned(offsets[-1] + part.nbytes))
    flat = torch.empty(offsets[-1], dtype=torch.uint8, device="cpu")
    memory = memoryview(extension().memory_of(flat))
    table = memory[: _WORD * (1 + len(parts))].cast("q")
    table[0] = len(parts)
    for number, (offset, part) in enumerate(zip(offsets, parts, strict=False)):
        table[1 + number] = part.nbytes
        memory[offset : offset + part.nbytes] = part
    return flat


def unflatten(flat: Tensor) -> Any:
    """The object that `flatten` made `flat` of. Its tensors and arrays live in `flat`.

    Raises:
        ValueError: `flat` was not made by `flatten`, or not all of it is there.
    """
    memory = memoryview(extension().memory_of(flat))
    count = int.from_bytes(memory[:_WORD], sys.byteorder)
    if not 0 < count <= memory.nbytes // _WORD - 1:
        raise ValueError(f"unflatten: no object in these {memory.nbytes} bytes (parts: {count})")
    lengths = memory[_WORD : _WORD * (1 + count)].cast("q").tolist()
    parts, offset = [], _aligned(_WORD * (1 + count))
    for length in lengths:
        if not 0 <= length <= memory.nbytes - offset:
            raise ValueError(f"unflatten: a part of {length} bytes in {memory.nbytes} bytes")
        parts.append(memory[offset : offset + length])
        offset = _aligned(offset + length)
    return unpack(parts[0], parts[1:])


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


class _Stream:
    """The file that a pickler writes to; moves large bytes objects out of it, among the buffers.

    The pickler has no hook for them that does not cost a call per object, but it hands the file
    those from 64 KiB on themselves, right after an opcode with their length. That is replaced.
    """

    def __init__(self, buffers: list[pickle.PickleBuffer]) -> None:
        self.pieces: list[bytes] = []
        self._buffers = buffers

    def write(self, data: bytes) -> None:
        opcode = _opcode_before(data, self.pieces) if len(data) >= _LARGE else b""
        if not opcode:
            self.pieces.append(data)
            return
        self.pieces[-1] = self.pieces[-1][: -len(opcode)] + _BYTES_OF_BUFFER
        self._buffers.append(pickle.PickleBuffer(data))


def _opcode_before(data: bytes, pieces: list[bytes]) -> bytes:
    """The end of the last piece if it announces `data` as a bytes object; else it is a str, say."""
    for opcode, width in ((pickle.BINBYTES, 4), (pickle.BINBYTES8, 8)):
        if len(data) < 1 << 8 * width:
            announcement = opcode + len(data).to_bytes(width, "little")
            if pieces and pieces[-1].endswith(announcement):
                return announcement
    return b""


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Tensor:
            return _reduce_tensor(obj)
        # NumPy is not required, and who has an array has imported it.
        numpy = sys.modules.get("numpy")
        if numpy is not None and type(obj) is numpy.ndarray:
            return _reduce_array(obj, numpy)
        return NotImplemented


def _reduce_tensor(tensor: Tensor) -> Any:
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return NotImplemented
    dtype_name = str(tensor.dtype).removeprefix("torch.")
    if dtype_name.startswith("q"):  # more than bytes: scales; and torch.frombuffer crashes on it
        return NotImplemented
    values = tensor.detach().resolve_conj().resolve_neg()
    strides = None
    if not values.is_contiguous():
        if torch.ops.aten.is_non_overlapping_and_dense(values):
            strides = values.stride()
        else:
            values = values.contiguous()
    attributes = dict(tensor.__dict__) or None
    return _tensor, (
        pickle.PickleBuffer(extension().memory_of(values)),
        dtype_name,
        tuple(tensor.shape),
        strides,
        tensor.requires_grad,
        attributes,
    )


def _tensor(
    buffer: Any,
    dtype_name: str,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None,
    requires_grad: bool,
    attributes: dict[str, Any] | None,
) -> Tensor:
    """The inverse of _reduce_tensor; found by its name in every pickle made there."""
    dtype = getattr(torch, dtype_name)
    memory = memoryview(buffer)
    if memory.nbytes == 0:
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
    else:
        if memory.readonly:
            memory = memoryview(bytearray(memory))
        tensor = torch.frombuffer(memory, dtype=dtype)
        tensor = tensor.view(shape) if strides is None else tensor.as_strided(shape, strides)
    if requires_grad:
        tensor.requires_grad_()
    if attributes:
        tensor.__dict__.update(attributes)
    return tensor


def _reduce_array(array: Any, numpy: Any) -> Any:
    if array.dtype.hasobject:
        return NotImplemented
    if array.dtype.kind in "mM":  # has no buffers of its own
        return _array_of_times, (numpy.ascontiguousarray(array).view("i8"), array.dtype)
    if array.flags.forc:
        return NotImplemented  # out of band by itself
    return numpy.ascontiguousarray(array).__reduce_ex__(5)


def _array_of_times(counts: Any, dtype: Any) -> Any:
    return counts.view(dtype)
