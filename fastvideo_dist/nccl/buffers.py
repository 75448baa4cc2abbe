"""From whatever a user calls a buffer to the memory the extension takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.dlpack import DLDeviceType

from fastvideo_dist._compat import extension

if TYPE_CHECKING:
    from fastvideo_dist._C import Buffer

__all__ = ["buffer_of"]

_buffer_of: Callable[..., Buffer | None] = extension().buffer_of

# NumPy arrays of ml_dtypes (JAX's types) export no memory under their own name, but do as integers.
_VIEWED = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}

# Packages whose arrays are immutable, yet hand their memory out by DLPack as if it were not.
_IMMUTABLE = ("jax", "jaxlib")


def buffer_of(obj: Any, written: bool) -> Buffer:
    """The memory of `obj`, which the result keeps.

    Args:
        written: whether a result will be put there.

    Raises:
        TypeError, ValueError: the text continues "sendbuf ...".
    """
    return _buffer_of(obj, written) or _of_foreign(obj, written)


def _of_foreign(obj: Any, written: bool) -> Buffer:
    dtype = str(getattr(getattr(obj, "dtype", None), "name", ""))
    if dtype in _VIEWED and hasattr(obj, "__array_interface__"):
        viewed = _buffer_of(obj.view(_VIEWED[dtype]), written, dtype)
        if viewed is not None:
            return viewed
    tensor = _as_tensor(obj, written)
    found = None if tensor is None else _buffer_of(tensor, written)
    if found is None:
        raise TypeError(
            f"is a {type(obj).__name__}; expected a torch tensor, a NumPy array or anything else "
            "with the buffer protocol, DLPack or the CUDA array interface"
        )
    return found


def _as_tensor(obj: Any, written: bool) -> torch.Tensor | None:
    """A tensor over the same memory; None if `obj` names none of the protocols."""
    if hasattr(obj, "__dlpack__"):
        try:
            if written and obj.__dlpack_device__()[0] == DLDeviceType.kDLCPU:
                return torch.utils.dlpack.from_dlpack(_writable_capsule(obj))
            return torch.utils.dlpack.from_dlpack(obj)
        except (BufferError, RuntimeError, AttributeError) as error:
            raise TypeError(f"could not be taken by DLPack: {error}") from error
    if hasattr(obj, "__cuda_array_interface__"):
        if not torch.cuda.is_available():
            raise TypeError("is in CUDA memory, and this process sees no GPU")
        tensor = torch.as_tensor(obj, device="cuda")
        if tensor.numel() > 0 and tensor.data_ptr() != obj.__cuda_array_interface__["data"][0]:
            raise ValueError(  # torch has copied it
                f"is not on {tensor.device}, the current GPU; make its GPU the current one "
                "(torch.cuda.device)"
            )
        return tensor
    return None


def _writable_capsule(obj: Any) -> Any:
    if type(obj).__module__.partition(".")[0] in _IMMUTABLE:
        raise ValueError("is immutable; receive into a NumPy array")
    try:
        capsule = obj.__dlpack__(max_version=(1, 0))
    except TypeError:  # written before DLPack 1.0
        capsule = obj.__dlpack__()
    if extension().is_read_only(capsule):
        raise ValueError("is read-only, and the result belongs there")
    return capsule
