"""What the tests of `fastvideo_dist.nccl` share: a communicator, inputs, and what an error says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastvideo_dist.nccl import Communicator, NcclInvalid, UniqueId, get_unique_id
from harness import GROUP_TIMEOUT_S

WORLD_SIZES = [1, 2, 3, 4]
INTEGERS = [torch.int8, torch.uint8, torch.int32, torch.uint32, torch.int64, torch.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
MOVED = [torch.float8_e4m3fn, torch.float8_e5m2, torch.bool]


def shared_id(rank: int) -> UniqueId:
    """Made by rank 0 of the default group, given to all."""
    ids = [get_unique_id() if rank == 0 else None]
    dist.broadcast_object_list(ids, 0)
    assert ids[0] is not None
    return ids[0]


def connect(rank: int, world_size: int, **kwargs: Any) -> Communicator:
    return Communicator.init(world_size, rank, shared_id(rank), timeout=GROUP_TIMEOUT_S, **kwargs)


def inputs(world_size: int, count: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """Of all ranks, the same on each; values that few additions of keep exact."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(world_size):
        values = torch.randint(0, 5, (count,), generator=generator)
        found.append(values.to(torch.float32).to(dtype) if dtype in MOVED else values.to(dtype))
    return found


def as_array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return tensor.numpy().copy()


def same(found: Any, wanted: Tensor, what: object) -> None:
    """To the bit."""
    tensor = torch.from_numpy(found) if isinstance(found, np.ndarray) else found
    assert tensor.dtype == wanted.dtype, (what, tensor.dtype, wanted.dtype)
    assert torch.equal(tensor.view(torch.uint8), wanted.contiguous().view(torch.uint8)), (
        f"{what}: found {tensor.tolist()[:8]}, wanted {wanted.tolist()[:8]}"
    )


def refused(call: Callable[[], object], words: str) -> NcclInvalid:
    """The NcclInvalid that `call` raises, whose message matches `words`."""
    with pytest.raises(NcclInvalid, match=words) as caught:
        call()
    return caught.value
