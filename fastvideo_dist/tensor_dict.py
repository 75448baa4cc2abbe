"""Tensors and dictionaries of them as messages: a typed table, pickle only for the rest.

The head of a message:

    | tensors, object buffers | per tensor: device, dtype, flags, dimensions, sizes |
    | sizes of the object buffers, of the stream | pickle stream |

The stream holds the keys, nested ones too, and what is no tensor. A tensor's bytes and those of
large objects are buffers of the message (wire.py).
"""

from __future__ import annotations

import struct
from collections import namedtuple
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastvideo_dist.serialize import pack, unpack
from fastvideo_dist.wire import SMALL_BYTES, Buffer, Memory, is_large

__all__ = ["Incoming", "TensorMetadata", "encode", "encode_object", "encode_tensor"]

# Of each tensor of a message; `device` is a type without an index: the receiver takes its own.
TensorMetadata = namedtuple("TensorMetadata", ["device", "dtype", "size"])

# A tensor's code is its place here, so new ones come at the end.
_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu", "npu", "meta")
_DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)
_DEVICE_CODES = {device: code for code, device in enumerate(_DEVICES)}
_DTYPE_CODES = {dtype: code for code, dtype in enumerate(_DTYPES)}
_COUNTS = struct.Struct("<II")
_TENSOR = struct.Struct("<BBBBI")  # device, dtype, dimensions, unused, parts

_Path = tuple[Any, ...]


def encode(
    tensor_dict: dict[Any, Any], parts: int = 1, part: int = 0
) -> tuple[bytes, list[Buffer]]:
    """The head and the buffers of a message.

    Args:
        tensor_dict: values are tensors, dictionaries of the same kind, or anything picklable.
        parts: of each large tensor whose elements this divides, only part number `part` of so
            many is a buffer; the receivers gather the whole.

    Raises:
        TypeError: no dictionary, or a tensor that is sparse, quantised, a wrapper of others such
            as a DTensor, or of an unknown dtype.
    """
    if not isinstance(tensor_dict, dict):
        raise TypeError(f"expected a dictionary of tensors, got {type(tensor_dict).__name__}")
    paths: list[_Path] = []
    is_tensor: list[bool] = []
    values: list[Any] = []
    table = bytearray()
    buffers: list[Tensor] = []
    for path, value in _walk(tensor_dict, ()):
        paths.append(path)
        is_tensor.append(isinstance(value, Tensor))
        if isinstance(value, Tensor):
            memory = _contiguous(value, path)
            count = parts if is_large(memory) and memory.numel() % parts == 0 else 1
            table += _describe(memory, path, count)
            buffers.append(memory if count == 1 else memory.reshape(count, -1)[part])
        else:
            values.append(value)
    stream, views = pack((paths, is_tensor, values))
    head = _COUNTS.pack(len(buffers), len(views)) + bytes(table)
    sizes = struct.pack(f"<{len(views) + 1}Q", *(view.nbytes for view in views), len(stream))
    return head + sizes + stream, [*buffers, *views]


def encode_object(obj: Any) -> tuple[bytes, list[Buffer]]:
    """The head and the buffers of a message that carries one object."""
    stream, views = pack(obj)
    # The stream too is a buffer: a long one is a transfer of its own, not a part of the head.
    buffers: list[Buffer] = [memoryview(stream), *views]
    sizes = [buffer.nbytes for buffer in buffers]
    return struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes), buffers


def encode_tensor(tensor: Tensor) -> tuple[bytes, list[Buffer]]:
    """The head and the buffer of a message that carries one tensor, of any strides.

    Raises:
        TypeError: as `encode`.
    """
    memory = _contiguous(tensor, ())
    return _COUNTS.pack(1, 0) + _describe(memory, (), 1) + struct.pack("<Q", 0), [memory]


class Incoming:
    """The receiver's side: memory for what a head announces, then what came.

    Args:
        device: of the tensors that are not the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._metadata: list[TensorMetadata] = []
        self._tensors: list[Tensor] = []
        self._parts: list[int] = []
        self._views: list[memoryview] = []
        self._stream = memoryview(b"")

    def targets(self, head: memoryview) -> list[Buffer]:
        """Memory for each buffer of a dictionary's message."""
        targets = self._targets_of_views(self._read(head))
        self._tensors = [
            self._empty(metadata, parts)
            for metadata, parts in zip(self._metadata, self._parts, strict=True)
        ]
        return [*self._tensors, *targets]

    def _targets_of_views(self, sizes: tuple[int, ...]) -> list[Buffer]:
        targets: list[Buffer] = []
        self._views = []
        for size in sizes:
            if size > SMALL_BYTES:
                memory = Memory(size)
                targets.append(memory.tensor)
                self._views.append(memory.view)
            else:
                view = memoryview(bytearray(size))
                targets.append(view)
                self._views.append(view)
        return targets

    def _read(self, head: memoryview) -> tuple[int, ...]:
        """Takes the head apart; returns the sizes of the object buffers."""
        tensors, views = _COUNTS.unpack_from(head, 0)
        at = _COUNTS.size
        for _ in range(tensors):
            device, dtype, dims, _, parts = _TENSOR.unpack_from(head, at)
            at += _TENSOR.size
            size = torch.Size(struct.unpack_from(f"<{dims}q", head, at))
            at += 8 * dims
            self._metadata.append(TensorMetadata(_DEVICES[device], _DTYPES[dtype], size))
            self._parts.append(parts)
        sizes = struct.unpack_from(f"<{views + 1}Q", head, at)
        at += 8 * (views + 1)
        self._stream = head[at : at + sizes[-1]]
        return sizes[:-1]

    def _empty(self, metadata: TensorMetadata, parts: int) -> Tensor:
        shape = metadata.size if parts == 1 else (metadata.size.numel() // parts,)
        return torch.empty(shape, dtype=metadata.dtype, device=self._place(metadata.device))

    def take(self, head: memoryview, memories: Sequence[Any]) -> list[Tensor]:
        """As `targets`, but with the memory that the CPU's buffers came in.

        Args:
            memories: of those, in order; with the buffer protocol, and nobody else's.

        Returns:
            The other buffers, to be received in this order.
        """
        views = self._read(head)
        came = iter(memories)
        for metadata in self._metadata:
            if metadata.device == "cpu":
                self._tensors.append(_tensor_in(next(came), metadata))
            else:
                self._tensors.append(self._empty(metadata, 1))
        self._views = [memoryview(next(came)) for _ in views]
        return [tensor for tensor in self._tensors if not tensor.is_cpu]

    def targets_of_object(self, head: memoryview) -> list[Buffer]:
        """Memory for each buffer of an object's message."""
        (count,) = struct.unpack_from("<I", head, 0)
        return self._targets_of_views(struct.unpack_from(f"<{count}Q", head, 4))

    def take_object(self, memories: Sequence[Any]) -> None:
        """As `targets_of_object`, but with the memory that the buffers came in."""
        self._views = [memoryview(memory) for memory in memories]

    @property
    def tensor(self) -> Tensor:
        """Of a message that carries one."""
        return self._tensors[0]

    @property
    def parts(self) -> set[int]:
        """Into how many parts the sender has divided tensors."""
        return set(self._parts)

    @property
    def description(self) -> str:
        """Of the tensors that came in parts; equal on ranks whose parts belong together."""
        paths, is_tensor, _ = unpack(self._stream, self._views)
        named = [path for path, tensor in zip(paths, is_tensor, strict=True) if tensor]
        return ", ".join(
            f"{_name(path)} {metadata.dtype} {list(metadata.size)}"
            for path, metadata, parts in zip(named, self._metadata, self._parts, strict=True)
            if parts > 1
        )

    def gather_parts(self, gather: Any) -> None:
        """Replaces each part by the whole; `gather` concatenates those of all ranks."""
        for index, parts in enumerate(self._parts):
            if parts > 1:
                whole = gather(self._tensors[index])
                self._tensors[index] = whole.reshape(self._metadata[index].size)

    def tensor_dict(self) -> dict[Any, Any]:
        """The dictionary, once all buffers are there; its tensors share no memory."""
        paths, is_tensor, values = unpack(self._stream, self._views)
        tensors, others = iter(self._tensors), iter(values)
        result: dict[Any, Any] = {}
        for path, tensor in zip(paths, is_tensor, strict=True):
            inner = result
            for key in path[:-1]:
                inner = inner.setdefault(key, {})
            inner[path[-1]] = next(tensors) if tensor else next(others)
        return result

    def object(self) -> Any:
        stream, *views = self._views
        return unpack(stream, views)

    def _place(self, device: str) -> torch.device:
        return self._device if self._device.type == device else torch.device(device)


def _walk(tensor_dict: dict[Any, Any], above: _Path) -> Iterator[tuple[_Path, Any]]:
    """Every value with the keys that lead to it. Plain dictionaries are entered unless empty."""
    for key, value in tensor_dict.items():
        path = (*above, key)
        if type(value) is dict and value:
            yield from _walk(value, path)
        else:
            yield path, value


def _contiguous(tensor: Tensor, path: _Path) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise TypeError(
            f"the tensor {_name(path)} is {_what(tensor)}; only dense tensors with memory travel"
        )
    if torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python):
        raise TypeError(
            f"the tensor {_name(path)} is a {type(tensor).__name__}, which has no memory of its "
            "own; send the tensor in it: to_local() or full_tensor() of a DTensor"
        )
    return tensor.detach().resolve_conj().resolve_neg().contiguous()


def _describe(tensor: Tensor, path: _Path, parts: int) -> bytes:
    device, dtype = _DEVICE_CODES.get(tensor.device.type), _DTYPE_CODES.get(tensor.dtype)
    if device is None or dtype is None:
        raise TypeError(
            f"the tensor {_name(path)} has dtype {tensor.dtype} on {tensor.device}; no message "
            "knows how to say that"
        )
    dims = tensor.dim()
    return _TENSOR.pack(device, dtype, dims, 0, parts) + struct.pack(f"<{dims}q", *tensor.shape)


def _tensor_in(memory: Any, metadata: TensorMetadata) -> Tensor:
    if metadata.size.numel() == 0:
        return torch.empty(metadata.size, dtype=metadata.dtype, device="cpu")
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    return flat.view(metadata.dtype).view(metadata.size)


def _name(path: _Path) -> str:
    return "".join(f"[{key!r}]" for key in path) or "given"


def _what(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "on the device meta"
    return "quantised" if tensor.is_quantized else f"of layout {tensor.layout}"
