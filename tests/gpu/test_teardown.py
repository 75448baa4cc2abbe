"""Groups that come and go leave nothing: memory of the GPU, descriptors, threads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from gpu.one_gpu import WORLD, run, take_gpu
from rank_process import Control, open_descriptors

pytestmark = pytest.mark.timeout(900)

ROUNDS = 100
WARM = 10  # by then what a process keeps for all groups is there
SLACK_BYTES = 64 << 20  # another process uses the GPU, too


def rounds(control: Control) -> dict[str, int]:
    device = take_gpu(control)
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    for number in range(ROUNDS):
        control.init(timeout_s=120.0, again=f"round {number}")
        x = torch.ones(1000, device=device)
        dist.all_reduce(x)
        torch.cuda.synchronize()
        assert float(x[0]) == WORLD
        dist.barrier()
        dist.destroy_process_group()
        if number in (WARM, ROUNDS - 1):
            free, _ = torch.cuda.mem_get_info()
            counts = {
                "bytes in use": -free,
                "descriptors": sum(open_descriptors().values()),
                "threads": len(list(Path("/proc/self/task").iterdir())),
                "threads of Python": threading.active_count(),
            }
            before, after = (counts if number == WARM else before), counts
    return {name: after[name] - before[name] for name in after}


def test_a_hundred_groups_leave_nothing() -> None:
    for grown in run(rounds, within=800):
        assert grown.pop("bytes in use") < SLACK_BYTES
        assert all(more <= 0 for more in grown.values()), grown
