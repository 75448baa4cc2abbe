"""Faults that one rank alone can see, and what the others hear of them."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import torch
import torch.distributed as dist

from harness import run_ranks
from layer.jobs import fails, job
from layer.test_messages import BACKENDS, over


def check_faults(rank: int, world_size: int, backend: str) -> None:
    """What the source alone can see is told to all, and the group goes on."""
    with job(rank, world_size):
        group = over(backend, world_size)
        for src in range(world_size):
            mine = rank == src
            kind = RuntimeError if not mine else (AttributeError, pickle.PicklingError)
            with fails(kind, "pickle"):
                group.broadcast_object((lambda: 0) if mine else None, src)
            with fails(kind, "pickle"):
                group.broadcast_object_list([lambda: 0] if mine else [None], src)
            kind = TypeError if mine else RuntimeError
            for wrong in (None, [1], {"x": torch.eye(3).to_sparse()}):
                with fails(kind, *(() if mine else (f"from rank {src}", "TypeError", "test:0"))):
                    group.broadcast_tensor_dict(wrong if mine else None, src)  # type: ignore[arg-type]
            with fails(RuntimeError, *(() if mine else ("x" * 4000,))):
                group.broadcast_object(Unwilling() if mine else None, src)
            with fails(kind, "pickle" if mine else "could not send"):
                group.broadcast_object(threading.Lock() if mine else None, src)
            assert group.broadcast_object(rank, src) == src
            assert group.broadcast_tensor_dict({"x": torch.tensor(rank)}, src) == {"x": src}
        with fails(dist.DistBackendError, "float32 [3, 3] sparse_coo"):
            group.broadcast(torch.eye(3) if rank else torch.eye(3).to_sparse())


class Unwilling:
    def __reduce__(self) -> Any:
        raise RuntimeError("x" * 10_000)


@BACKENDS
def test_faults_of_the_source_are_told_to_all(backend: str) -> None:
    run_ranks(check_faults, 2, backend=backend)


def check_long_lines(rank: int, world_size: int) -> None:
    """They are cut to be sent, and differ behind the cut."""
    with job(rank, world_size):
        group = over("fastvideo", world_size)
        with fails(dist.DistBackendError, "differ in what is cut off"):
            group.agree("x" * 500 + str(rank))


def test_lines_that_are_cut_are_not_called_different() -> None:
    run_ranks(check_long_lines, 2)
