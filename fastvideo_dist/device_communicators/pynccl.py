"""NCCL for one group of ranks, beside c10d. Its body comes with the NCCL transport."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from fastvideo_dist.device_communicators.pynccl_wrapper import NCCLLibrary, ncclUniqueId
from fastvideo_dist.stateless_process_group import StatelessProcessGroup

__all__ = ["NCCLLibrary", "PyNcclCommunicator", "ncclUniqueId"]

logger = logging.getLogger(__name__)


class PyNcclCommunicator:
    """Collectives of NCCL on CUDA tensors, on a stream of the caller's choice.

    Arguments named `src` and `dst` are ranks in the group; `stream` is a `torch.cuda.Stream`, the
    current one if None.

    Raises:
        RuntimeError: this process sees no GPU.
        NotImplementedError: it does, but this version has no NCCL transport.
        ValueError: `device` is no CUDA device.
    """

    def __init__(
        self,
        group: ProcessGroup | StatelessProcessGroup,
        device: int | str | torch.device,
        library_path: str | None = None,
    ) -> None:
        place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if place.type != "cuda":
            raise ValueError(f"PyNcclCommunicator: NCCL moves CUDA tensors; the device is {place}")
        if not torch.cuda.is_available():
            raise RuntimeError(
                f"PyNcclCommunicator on {place}: no GPU is present (torch {torch.__version__}, "
                f"CUDA {torch.version.cuda}); CPU tensors are served by CpuCommunicator"
            )
        self._refuse()

    def all_reduce(
        self,
        in_tensor: Tensor,
        op: ReduceOp = ReduceOp.SUM,  # type: ignore[assignment]
        stream: Any = None,
    ) -> Tensor:
        """The reduction over the ranks, in a new tensor."""
        self._refuse()

    def all_gather(self, output_tensor: Tensor, input_tensor: Tensor, stream: Any = None) -> None:
        """Joins the inputs of all ranks in `output_tensor`, which is W times as long."""
        self._refuse()

    def reduce_scatter(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        op: ReduceOp = ReduceOp.SUM,  # type: ignore[assignment]
        stream: Any = None,
    ) -> None:
        """This rank's part of the reduction, into `output_tensor`; the input is W times as long."""
        self._refuse()

    def send(self, tensor: Tensor, dst: int, stream: Any = None) -> None:
        self._refuse()

    def recv(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        self._refuse()

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        """Of `src`, in place."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotImplementedError(
            "PyNcclCommunicator: this version has no NCCL transport; use torch.distributed with "
            'the backend "cpu:fastvideo,cuda:nccl"'
        )
