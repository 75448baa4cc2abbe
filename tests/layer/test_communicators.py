"""The device communicators at FastVideo's import paths; without a GPU they say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from fastvideo_dist.device_communicators.base_device_communicator import DeviceCommunicatorBase
from fastvideo_dist.device_communicators.cpu_communicator import CpuCommunicator
from fastvideo_dist.device_communicators.cuda_communicator import CudaCommunicator
from fastvideo_dist.device_communicators.pynccl import PyNcclCommunicator
from fastvideo_dist.parallel_state import get_sp_group, graph_capture
from harness import run_ranks
from layer.jobs import fails, job

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def check_cpu(rank: int, world_size: int) -> None:
    """Made as FastVideo's own code makes it, without a coordinator."""
    communicator = CpuCommunicator(dist.group.WORLD, torch.device("cpu"), unique_name="mine")
    assert isinstance(communicator, DeviceCommunicatorBase)
    assert (communicator.rank, communicator.world_size) == (rank, world_size)
    assert communicator.ranks == list(range(world_size))
    x = torch.full((2,), float(rank))
    assert (communicator.all_reduce(x) == sum(range(world_size))).all()
    assert (x == rank).all()
    assert communicator.all_gather(x).shape == (2 * world_size,)
    if world_size > 1:
        if rank > 0:  # rank 0 receives first, so that nobody is stuck
            communicator.send(x)
        assert communicator.recv(x.shape, x.dtype).tolist() == 2 * [(rank - 1) % world_size]
        if rank == 0:
            communicator.send(x)
    communicator.destroy()
    communicator.destroy()
    with job(rank, world_size):
        made = get_sp_group().device_communicator
        assert (made is None) == (world_size == 1)
        assert made is None or isinstance(made, CpuCommunicator)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_cpu_communicator(world_size: int) -> None:
    run_ranks(check_cpu, world_size)


@no_gpu
@pytest.mark.parametrize(
    "make",
    [
        lambda: CudaCommunicator(dist.group.WORLD, torch.device("cuda", 0), unique_name="tp:0"),
        lambda: PyNcclCommunicator(dist.group.WORLD, 0),  # type: ignore[arg-type]
        lambda: PyNcclCommunicator(dist.group.WORLD, "cuda:1"),  # type: ignore[arg-type]
    ],
)
def test_without_a_gpu_they_say_so(make: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match=r"no GPU is present.*CpuCommunicator"):
        make()


def test_the_wrong_device_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device is cpu.*CpuCommunicator"):
        CudaCommunicator(dist.group.WORLD, torch.device("cpu"))
    with pytest.raises(ValueError, match="device is cpu"):
        PyNcclCommunicator(dist.group.WORLD, "cpu")  # type: ignore[arg-type]


def check_capture(rank: int, world_size: int) -> None:
    with fails(RuntimeError, "not initialised"), graph_capture():
        pass
    with job(rank, world_size):
        with graph_capture() as context:
            assert context.stream is None
        with get_sp_group().graph_capture(context) as same:
            assert same is context


@no_gpu
def test_without_a_gpu_nothing_is_captured() -> None:
    run_ranks(check_capture, 2)
