"""FastVideo's names for NCCL's creation of communicators, over `fastvideo_dist.nccl`.

The functions of NCCL that take raw addresses are not here: a `Communicator` takes the tensors.
"""

from __future__ import annotations

import torch

from fastvideo_dist._compat import extension
from fastvideo_dist.nccl import Communicator, UniqueId, get_unique_id, group_end, group_start

__all__ = ["NCCLLibrary", "ncclComm_t", "ncclUniqueId"]

ncclComm_t = Communicator  # noqa: N816  (FastVideo's name)


class ncclUniqueId(UniqueId):  # noqa: N801  (FastVideo's name)
    """A `UniqueId` whose bytes may be written one by one, as FastVideo fills a received one."""

    __slots__ = ()

    @property
    def internal(self) -> bytearray:
        """The 128 bytes themselves."""
        return self._bytes


class NCCLLibrary:
    """Creation and end of communicators.

    Args:
        so_file: of the libnccl that CUDA memory is to go through; a process has one. None: chosen
            when it is needed, see docs/nccl.md.

    Raises:
        NotImplementedError: the library cannot be used.
        ValueError: another one is in use already.
    """

    def __init__(self, so_file: str | None = None) -> None:
        self._version: str | None = None
        if so_file is not None:
            self._version, _ = extension().load_nccl(so_file)

    def ncclGetVersion(self) -> str:  # noqa: N802  (FastVideo's name, as all below)
        """Of the library that was given, else of the NCCL that torch was built with: "2.29.7".

        Raises:
            RuntimeError: none was given, and torch was built without.
        """
        if self._version is not None:
            return self._version
        if not torch.distributed.is_nccl_available():
            raise RuntimeError("ncclGetVersion: this torch was built without NCCL")
        return ".".join(str(part) for part in torch.cuda.nccl.version()[:3])  # type: ignore[no-untyped-call]

    def ncclGetUniqueId(self) -> ncclUniqueId:  # noqa: N802
        return ncclUniqueId.from_bytes(bytes(get_unique_id()))

    def unique_id_from_bytes(self, data: bytes) -> ncclUniqueId:
        return ncclUniqueId.from_bytes(data)

    def ncclCommInitRank(  # noqa: N802
        self, world_size: int, unique_id: UniqueId, rank: int
    ) -> Communicator:
        return Communicator.init(world_size, rank, unique_id)

    def ncclCommDestroy(self, comm: Communicator) -> None:  # noqa: N802
        comm.destroy()

    def ncclGroupStart(self) -> None:  # noqa: N802
        group_start()

    def ncclGroupEnd(self) -> None:  # noqa: N802
        group_end()
