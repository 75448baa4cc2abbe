"""The ranks of a group tell each other what they are about to do, and all find out if they differ.

c10d compares operation, dtype, count and root. What a call of this layer means beyond that (which
coordinator, which kind of message, which shape) stands in one line of text per rank.
"""

from __future__ import annotations

import zlib

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import AllgatherOptions
from torch.distributed import ProcessGroup

from fastvideo_dist.wire import Memory

__all__ = ["Agreement", "described"]

# A line is cut to this; its check sum is of the whole. One small collective moves them all.
_BYTES = 192
_SUM_BYTES = 8


def described(tensor: Tensor) -> str:
    """ "float32 [2, 3]"; of a tensor that is not dense also its layout."""
    dtype, layout = (str(what).removeprefix("torch.") for what in (tensor.dtype, tensor.layout))
    return f"{dtype} {list(tensor.shape)}" + ("" if layout == "strided" else f" {layout}")


class Agreement:
    """Of one group. One thread at a time.

    Args:
        name: of the coordinator; those which share the group have different ones.
    """

    def __init__(self, group: ProcessGroup, name: str) -> None:
        self._group = group
        self._name = name
        self._size = group.size()
        self._mine = Memory(_BYTES)
        self._all = Memory(_BYTES * self._size)
        self._options = AllgatherOptions()
        self._options.asyncOp = False  # on this thread
        self._failed = ""

    def check(self, call: str) -> None:
        """Collective: returns when every rank is in it with the same text.

        Args:
            call: one line, such as "broadcast of float32 [2, 3] from rank 0".

        Raises:
            torch.distributed.DistBackendError: on all ranks, if the texts differ, in this call
                or in an earlier one, or if a rank died or is in a call of another kind.
        """
        if self._failed:
            raise dist.DistBackendError(f"{call}: given up, because earlier {self._failed}")
        line = f"{call} on group {self._name!r}".encode()
        record = zlib.crc32(line).to_bytes(_SUM_BYTES, "little")
        record += line[: _BYTES - _SUM_BYTES].ljust(_BYTES - _SUM_BYTES)
        self._mine.view[:] = record
        try:
            self._group._allgather_base(self._all.tensor, self._mine.tensor, self._options).wait()
        except dist.DistBackendError as error:
            # The transport knows neither what was meant nor the coordinator's name.
            raise dist.DistBackendError(f"{line.decode()}: {error}") from error
        if bytes(self._all.view) != record * self._size:
            self._failed = self._difference()
            raise dist.DistBackendError(self._failed)

    def _difference(self) -> str:
        records = [
            bytes(self._all.view[rank * _BYTES : (rank + 1) * _BYTES]) for rank in range(self._size)
        ]
        lines = [record[_SUM_BYTES:].decode(errors="replace").rstrip() for record in records]
        other = next(rank for rank, record in enumerate(records) if record != records[0])
        alike = " (they differ in what is cut off here)" if lines[other] == lines[0] else ""
        return (
            f"the ranks of group {self._name!r} disagree, as its rank {self._group.rank()} sees "
            f"it: rank 0 calls {lines[0]}, rank {other} calls {lines[other]}{alike}; every rank "
            "must make the same calls with the same arguments, in the same order"
        )
