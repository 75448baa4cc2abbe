"""FastVideo's names for NCCL's creation of communicators, over `fastvideo_dist.nccl`.

The functions of NCCL that take raw addresses are not here: a `Communicator` takes the tensors.
"""

from __future__ import annotations

import torch

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
        so_file: must be None: which library is loaded is not chosen here.

    Raises:
        NotImplementedError: a library was given.
    """

    def __init__(self, so_file: str | None = None) -> None:
        if so_file is not None:
            raise NotImplementedError(
                f"NCCLLibrary({so_file!r}): no transport of this version takes a library by path"
            )

    def ncclGetVersion(self) -> str:  # noqa: N802  (FastVideo's name, as all below)
        """Of the NCCL that torch was built with, such as "2.29.7".

        Raises:
            RuntimeError: torch was built without.
        """
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
