"""FastVideo's names for creating a communicator of NCCL."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastvideo_dist import nccl
from fastvideo_dist.device_communicators.pynccl import NCCLLibrary, ncclUniqueId
from harness import run_ranks


def check_as_fastvideo_does(rank: int, world_size: int) -> None:
    """The id's bytes go through a broadcast, element by element."""
    library = NCCLLibrary()
    unique_id = library.ncclGetUniqueId() if rank == 0 else ncclUniqueId()
    tensor = torch.ByteTensor(list(unique_id.internal))
    dist.broadcast(tensor, 0)
    for i, byte in enumerate(tensor.tolist()):
        unique_id.internal[i] = byte
    comm = library.ncclCommInitRank(world_size, unique_id, rank)
    x, y = np.ones(2), np.zeros(2)
    library.ncclGroupStart()
    comm.allreduce(x, y, nccl.SUM)
    library.ncclGroupEnd()
    assert (y == world_size).all()
    dist.barrier()
    library.ncclCommDestroy(comm)
    assert not comm.is_valid


def test_a_communicator_as_fastvideo_makes_it() -> None:
    run_ranks(check_as_fastvideo_does, 2)


def test_the_library() -> None:
    library = NCCLLibrary()
    same = library.unique_id_from_bytes(bytes(range(128)))
    assert bytes(same) == bytes(range(128))
    assert type(pickle.loads(pickle.dumps(same))) is ncclUniqueId
    if dist.is_nccl_available():
        assert library.ncclGetVersion().count(".") == 2
    with pytest.raises(NotImplementedError, match=r"(?s)no usable NCCL.*/nowhere/libnccl"):
        NCCLLibrary("/nowhere/libnccl.so.2")
