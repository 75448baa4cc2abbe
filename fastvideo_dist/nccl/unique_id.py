"""Where the ranks of a communicator meet, as 128 bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from fastvideo_dist._compat import extension
from fastvideo_dist.nccl.errors import NcclInvalid

if TYPE_CHECKING:
    from numpy import ndarray

__all__ = ["UniqueId", "get_unique_id"]

_BYTES = 128
_Self = TypeVar("_Self", bound="UniqueId")


class UniqueId:
    """The address of a place in the memory of the process that made it (`get_unique_id`).

    One id makes one communicator. It reaches the other ranks by any way that carries 128 bytes: as
    an argument, pickled, through a file, a store, or MPI. They must be processes of the same user
    on the same host; the process that made it must live until all ranks have come. Whoever runs as
    another user cannot use it.
    """

    __slots__ = ("_bytes",)

    def __init__(self) -> None:
        """An empty id, to be filled through `as_ndarray`; see `get_unique_id`."""
        self._bytes = bytearray(_BYTES)

    @classmethod
    def from_bytes(cls: type[_Self], b: bytes | bytearray | memoryview) -> _Self:
        """The id of which these are the bytes.

        Raises:
            NcclInvalid: they are not 128 bytes.
        """
        if len(b) != _BYTES:
            raise NcclInvalid(f"UniqueId.from_bytes: an id has {_BYTES} bytes, these are {len(b)}")
        unique_id = cls()
        unique_id._bytes[:] = b
        return unique_id

    @property
    def as_bytes(self) -> bytes:
        return bytes(self._bytes)

    @property
    def as_ndarray(self) -> ndarray:
        """The 128 bytes in place, for transports that fill NumPy arrays, such as MPI's Bcast."""
        import numpy  # noqa: PLC0415  (NumPy is optional)

        return numpy.frombuffer(self._bytes, numpy.uint8)

    def __bytes__(self) -> bytes:
        return self.as_bytes

    def __reduce__(self) -> tuple[object, tuple[bytes]]:
        return type(self).from_bytes, (self.as_bytes,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UniqueId) and self._bytes == other._bytes

    __hash__ = None  # type: ignore[assignment]  # its bytes may still be filled in

    def __repr__(self) -> str:
        return f"<UniqueId: ...{self._bytes[-32:-16].hex()}>"


def get_unique_id(empty: bool = False) -> UniqueId:
    """A new id, made by one rank (or a process that starts them) and handed to all.

    It holds 256 KiB of shared memory and one descriptor of this process until its rank has joined,
    or, if this process is no rank, until it ends.

    Args:
        empty: an id without a place, for `UniqueId.as_ndarray` to be filled.

    Raises:
        torch.distributed.DistBackendError: no memory, or no descriptor left.
    """
    if empty:
        return UniqueId()
    return UniqueId.from_bytes(extension().create_unique_id())
