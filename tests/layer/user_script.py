"""A user's program, for `make lint`: with mypy --strict every public type is what it is said to be.

test_user_script.py runs it as well.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import fastvideo_dist
from fastvideo_dist import GroupCoordinator, StatelessProcessGroup, get_sp_group, get_tp_group
from fastvideo_dist.communication_op import (
    sequence_model_parallel_all_gather_with_unpad,
    sequence_model_parallel_all_to_all_4D,
    sequence_model_parallel_shard,
)
from fastvideo_dist.device_communicators.base_device_communicator import DeviceCommunicatorBase
from fastvideo_dist.parallel_state import (
    TensorMetadata,
    cleanup_dist_env_and_memory,
    init_distributed_environment,
    initialize_model_parallel,
    patch_tensor_parallel_group,
)


def attention(x: Tensor) -> Tensor:
    part, length = sequence_model_parallel_shard(x, dim=1)
    heads: Tensor = sequence_model_parallel_all_to_all_4D(part, scatter_dim=2, gather_dim=1)
    part = sequence_model_parallel_all_to_all_4D(heads, scatter_dim=1, gather_dim=2)
    return sequence_model_parallel_all_gather_with_unpad(part, length, dim=1)


def exchange(group: GroupCoordinator) -> int:
    total: Tensor = group.all_reduce(torch.ones(2), dist.ReduceOp.SUM)
    gathered: Tensor | None = group.gather(total, dst=0)
    sent: dict[str, Tensor | Any] | None = group.broadcast_tensor_dict({"x": total})
    communicator: DeviceCommunicatorBase | None = group.device_communicator
    process_group: dist.ProcessGroup = group.device_group
    ranks: list[int] = group.ranks
    if group.world_size > 1:
        handle = group.isend_tensor_dict({"x": total})
        received = group.irecv_tensor_dict().wait(timedelta(seconds=10))
        handle.wait()
        assert received is not None
    assert sent is not None
    assert process_group.size() == len(ranks)
    assert (communicator is None) == (len(ranks) == 1)
    assert (gathered is None) == (group.rank_in_group != 0)
    return group.rank_in_group


def main(rank: int, world_size: int) -> int:
    init_distributed_environment(
        world_size=world_size, rank=rank, local_rank=rank, timeout=timedelta(seconds=30)
    )
    initialize_model_parallel(
        tensor_model_parallel_size=world_size, sequence_model_parallel_size=world_size
    )
    y = attention(torch.ones(1, 5, 2 * world_size, 3))
    assert y.shape == (1, 5, 2 * world_size, 3)
    with patch_tensor_parallel_group(get_sp_group()):
        assert get_tp_group() is get_sp_group()
    metadata = TensorMetadata("cpu", torch.float32, y.size())
    alone: StatelessProcessGroup = StatelessProcessGroup(0, 1, dist.HashStore())  # type: ignore[attr-defined]
    objects: list[Any] = alone.all_gather_obj(metadata.dtype)
    assert objects == [torch.float32]
    number = exchange(fastvideo_dist.get_world_group())
    cleanup_dist_env_and_memory()
    return number
