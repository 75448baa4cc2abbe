"""Element types, reductions, and what may be a buffer or a stream."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Protocol

__all__ = [
    "AVG",
    "BFLOAT16",
    "CHAR",
    "DOUBLE",
    "DTYPES",
    "FLOAT",
    "FLOAT8E4M3",
    "FLOAT8E5M2",
    "FLOAT16",
    "FLOAT32",
    "FLOAT64",
    "HALF",
    "INT",
    "INT8",
    "INT32",
    "INT64",
    "MAX",
    "MIN",
    "PROD",
    "SUM",
    "UINT8",
    "UINT32",
    "UINT64",
    "Buffer",
    "IsStreamType",
    "NcclDataType",
    "NcclRedOp",
    "Stream",
    "SupportsCAI",
    "SupportsDLPack",
]


class NcclDataType(IntEnum):
    """Element types, by NCCL's numbers."""

    INT8 = 0
    CHAR = 0
    UINT8 = 1
    INT32 = 2
    INT = 2
    UINT32 = 3
    INT64 = 4
    UINT64 = 5
    FLOAT16 = 6
    HALF = 6
    FLOAT32 = 7
    FLOAT = 7
    FLOAT64 = 8
    DOUBLE = 8
    BFLOAT16 = 9
    FLOAT8E4M3 = 10
    FLOAT8E5M2 = 11

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return _ITEMSIZES[self]


_ITEMSIZES = (1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1)


class NcclRedOp(IntEnum):
    """Reductions, by NCCL's numbers."""

    SUM = 0
    PROD = 1
    MAX = 2
    MIN = 3
    AVG = 4


DTYPES = {
    "bool": NcclDataType.UINT8,
    "int8": NcclDataType.INT8,
    "uint8": NcclDataType.UINT8,
    "int32": NcclDataType.INT32,
    "uint32": NcclDataType.UINT32,
    "int64": NcclDataType.INT64,
    "uint64": NcclDataType.UINT64,
    "float16": NcclDataType.FLOAT16,
    "float32": NcclDataType.FLOAT32,
    "float64": NcclDataType.FLOAT64,
    "bfloat16": NcclDataType.BFLOAT16,
    "float8_e4m3fn": NcclDataType.FLOAT8E4M3,
    "float8_e5m2": NcclDataType.FLOAT8E5M2,
}
"""By the names that torch and NumPy (with ml_dtypes) use."""

INT8 = CHAR = NcclDataType.INT8
UINT8 = NcclDataType.UINT8
INT32 = INT = NcclDataType.INT32
UINT32 = NcclDataType.UINT32
INT64 = NcclDataType.INT64
UINT64 = NcclDataType.UINT64
FLOAT16 = HALF = NcclDataType.FLOAT16
FLOAT32 = FLOAT = NcclDataType.FLOAT32
FLOAT64 = DOUBLE = NcclDataType.FLOAT64
BFLOAT16 = NcclDataType.BFLOAT16
FLOAT8E4M3 = NcclDataType.FLOAT8E4M3
FLOAT8E5M2 = NcclDataType.FLOAT8E5M2
SUM = NcclRedOp.SUM
PROD = NcclRedOp.PROD
MAX = NcclRedOp.MAX
MIN = NcclRedOp.MIN
AVG = NcclRedOp.AVG


class Buffer(Protocol):
    """Python's buffer protocol: NumPy arrays, array.array, bytearray, memoryview."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


class SupportsDLPack(Protocol):
    """Arrays of torch, JAX, CuPy and most others."""

    def __dlpack__(self) -> Any: ...
    def __dlpack_device__(self) -> Any: ...


class SupportsCAI(Protocol):
    """Arrays in CUDA memory, as Numba and CuPy export them."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...


class Stream(Protocol):
    """`torch.cuda.Stream`."""

    @property
    def cuda_stream(self) -> int: ...


class IsStreamType(Protocol):
    """Streams of other packages: a version and the handle."""

    def __cuda_stream__(self) -> tuple[int, int]: ...
