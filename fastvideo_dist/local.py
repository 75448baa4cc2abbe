"""What this process can say of itself: its device, its rank on the host, its node."""

from __future__ import annotations

import os
from pathlib import Path

import torch

__all__ = ["get_local_torch_device", "local_rank_from_environment", "this_node"]


def local_rank_from_environment() -> int:
    """`LOCAL_RANK`, as torchrun and FastVideo's executors set it; 0 without."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def get_local_torch_device() -> torch.device:
    """The device of this rank: `cuda:LOCAL_RANK` where CUDA is available, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank_from_environment())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def this_node() -> str:
    """Equal in two processes if and only if they can share memory and see each other's pids.

    The boot id tells hosts, and starts of a host, apart; the namespace tells containers apart,
    which one kernel may serve although their processes cannot name each other.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = os.stat("/proc/self/ns/pid")
    return f"{boot}/{namespace.st_dev}:{namespace.st_ino}"
