"""What `op` may be: NCCL's five reductions, and sums of scaled contributions."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

import torch

from fastvideo_dist._compat import extension
from fastvideo_dist.nccl.buffers import buffer_of
from fastvideo_dist.nccl.errors import NcclInvalid
from fastvideo_dist.nccl.types import DTYPES, NcclDataType, NcclRedOp

if TYPE_CHECKING:
    from fastvideo_dist._C import Reduction

__all__ = ["STANDARD", "CustomRedOp", "pre_mul_sum"]

_Reduction = extension().Reduction

STANDARD: dict[NcclRedOp, Reduction] = {
    NcclRedOp.SUM: _Reduction("SUM"),
    NcclRedOp.PROD: _Reduction("PRODUCT"),
    NcclRedOp.MAX: _Reduction("MAX"),
    NcclRedOp.MIN: _Reduction("MIN"),
    NcclRedOp.AVG: _Reduction("AVG"),
}

_FLOATS = {
    NcclDataType.FLOAT16: torch.float16,
    NcclDataType.BFLOAT16: torch.bfloat16,
    NcclDataType.FLOAT32: torch.float32,
    NcclDataType.FLOAT64: torch.float64,
}
_FLOAT8 = {NcclDataType.FLOAT8E4M3, NcclDataType.FLOAT8E5M2}

_handles = itertools.count(len(NcclRedOp))  # as NCCL: behind its own reductions


class CustomRedOp:
    """Of one communicator (`Communicator.create_pre_mul_sum`), for buffers of one element type.

    Attributes:
        datatype: of the scalar and of the buffers it reduces.
        scalar: the multiplier, as it is after rounding to `datatype`.
    """

    def __init__(self, reduction: Reduction, datatype: NcclDataType, scalar: float) -> None:
        self.datatype = datatype
        self.scalar = scalar
        self._reduction: Reduction | None = reduction
        self._op = next(_handles)

    @property
    def is_valid(self) -> bool:
        """Until `close`, or until the communicator is destroyed or aborted."""
        return self._reduction is not None

    @property
    def op(self) -> int:
        """A number of its own.

        Raises:
            RuntimeError: it was closed.
        """
        if self._reduction is None:
            raise RuntimeError("CustomRedOp has been closed and is no longer valid")
        return self._op

    def __int__(self) -> int:
        return self.op

    def close(self) -> None:
        """Ends its use. Idempotent; calls that were made are not touched."""
        self._reduction = None

    def __repr__(self) -> str:
        if self._reduction is None:
            return "<CustomRedOp: closed>"
        return f"<CustomRedOp: PreMulSum of {self.datatype.name} by {self.scalar}>"


def pre_mul_sum(scalar: Any, datatype: NcclDataType | None) -> CustomRedOp:
    """As `Communicator.create_pre_mul_sum`, whose words these errors continue.

    Raises:
        NcclInvalid: see there.
    """
    value, own, convertible = _value(scalar)
    if datatype is None:
        datatype = own
    elif not isinstance(datatype, NcclDataType):
        raise NcclInvalid(f"datatype must be an NcclDataType, got {datatype!r}")
    elif datatype != own and not convertible:
        raise NcclInvalid(f"Dtype mismatch: scalar has dtype {own.name}, requested {datatype.name}")
    if datatype in _FLOAT8:
        raise NcclInvalid(f"{datatype.name} is moved, but not reduced, by any transport here")
    if datatype in _FLOATS:
        try:
            wide = torch.tensor(float(value), dtype=torch.float64)
        except OverflowError:
            raise NcclInvalid(f"the scalar does not fit {datatype.name}") from None
        rounded = wide.to(_FLOATS[datatype]).item()
        return CustomRedOp(_Reduction("PREMUL_SUM", factor=rounded), datatype, rounded)
    whole = _whole(value, datatype)
    return CustomRedOp(_Reduction("SUM", multiplier=whole % 2**64), datatype, whole)


def _value(scalar: Any) -> tuple[float, NcclDataType, bool]:
    """The number, its own type, and whether it may become another: host values may, buffers not."""
    if isinstance(scalar, bool):
        raise NcclInvalid("the scalar is a bool; give a number")
    if isinstance(scalar, int):
        return scalar, NcclDataType.INT64, True
    if isinstance(scalar, float):
        return float(scalar), NcclDataType.FLOAT64, True
    try:
        buffer = buffer_of(scalar, False)
    except (TypeError, ValueError) as error:
        raise NcclInvalid(f"the scalar {error}, or an int or float") from None
    if buffer.count != 1:
        raise NcclInvalid(f"the scalar must have exactly 1 element, got {buffer.count}")
    if buffer.dtype == "bool":
        raise NcclInvalid("the scalar is a bool; give a number")
    from_numpy = type(scalar).__module__.partition(".")[0] == "numpy"
    return buffer.first(), DTYPES[buffer.dtype], from_numpy


def _whole(value: float, datatype: NcclDataType) -> int:
    """The integer `value` is, within the range of `datatype`."""
    # Of whole numbers nothing passes through a float, which they may not fit.
    if not isinstance(value, int) and not (math.isfinite(value) and int(value) == value):
        raise NcclInvalid(f"the scalar {value} is no integer, but the data type is {datatype.name}")
    bits = 8 * datatype.itemsize
    least = 0 if datatype.name.startswith("UINT") else -(2 ** (bits - 1))
    most = least + 2**bits - 1
    if not least <= value <= most:
        found = int(value)
        words = str(found) if found.bit_length() <= 128 else f"of {found.bit_length()} bits"
        raise NcclInvalid(f"the scalar {words} does not fit {datatype.name} ({least} to {most})")
    return int(value)
