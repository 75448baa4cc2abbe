"""Two real NCCL ranks on one GPU.

NCCL refuses two ranks of one host on one GPU. With another NCCL_HOSTID in each process they are of
two hosts, as far as it knows, and talk through sockets. The driver gives the processes turns, so
every handshake costs milliseconds: few channels, small tensors, limits of minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import fastvideo_dist  # noqa: F401  (registers the backend where the package is not installed)
from fresh import fresh_ranks
from rank_process import Control

WORLD = 2
ENVIRONMENT = {
    "NCCL_NET": "Socket",
    "NCCL_IB_DISABLE": "1",
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_MNNVL_ENABLE": "0",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_RAS_ENABLE": "0",
    "NCCL_MAX_CTAS": "2",
}


def take_gpu(control: Control) -> torch.device:
    """Before the first call of NCCL in a rank's process."""
    os.environ.update(ENVIRONMENT, NCCL_HOSTID=f"rank{control.rank}")
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def join(control: Control, **kwargs: Any) -> torch.device:
    device = take_gpu(control)
    control.init(**{"timeout_s": 120.0, **kwargs})
    return device


def nccl_group() -> dist.ProcessGroup:
    """Of torch's own backend, over the same ranks."""
    group = dist.new_group(backend="nccl")
    assert isinstance(group, dist.ProcessGroup)
    return group


def run(fn: Callable[..., Any], within: float = 300, **kwargs: Any) -> list[Any]:
    """`fn(control, **kwargs)` on both ranks; what they return, by rank."""
    with fresh_ranks(fn, WORLD, **kwargs) as ranks:
        return ranks.values(within)


def same_bytes(found: Tensor, wanted: Tensor) -> bool:
    a, b = (t.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for t in (found, wanted))
    return found.shape == wanted.shape and torch.equal(a, b)
