"""Collectives on memory, in the shape of NCCL's own Python package, without torch.distributed.

    import numpy as np
    from fastvideo_dist import nccl

    comm = nccl.Communicator.init(nranks, rank, unique_id)  # from nccl.get_unique_id() of one rank
    comm.allreduce(x, x, nccl.SUM)

Buffers are NumPy arrays, torch tensors, anything with Python's buffer protocol or DLPack. In CPU
memory, the ranks of one host exchange them through shared memory, in CUDA memory through NCCL.
docs/nccl4py.md says what is equal to nccl4py and what differs on purpose.
"""

from __future__ import annotations

from fastvideo_dist.nccl.communicator import Communicator
from fastvideo_dist.nccl.errors import NcclInvalid, NcclUnsupported
from fastvideo_dist.nccl.grouping import group, group_end, group_start
from fastvideo_dist.nccl.reductions import CustomRedOp
from fastvideo_dist.nccl.types import (
    AVG,
    BFLOAT16,
    CHAR,
    DOUBLE,
    FLOAT,
    FLOAT8E4M3,
    FLOAT8E5M2,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    HALF,
    INT,
    INT8,
    INT32,
    INT64,
    MAX,
    MIN,
    PROD,
    SUM,
    UINT8,
    UINT32,
    UINT64,
    NcclDataType,
    NcclRedOp,
    SupportsCAI,
    SupportsDLPack,
)
from fastvideo_dist.nccl.unique_id import UniqueId, get_unique_id

__all__ = [
    "AVG",
    "BFLOAT16",
    "CHAR",
    "DOUBLE",
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
    "Communicator",
    "CustomRedOp",
    "NcclDataType",
    "NcclInvalid",
    "NcclRedOp",
    "NcclUnsupported",
    "SupportsCAI",
    "SupportsDLPack",
    "UniqueId",
    "get_unique_id",
    "group",
    "group_end",
    "group_start",
]
