"""Collectives on CUDA tensors, and on CPU tensors of ranks that have a GPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from fastvideo_dist.device_communicators.base_device_communicator import DeviceCommunicatorBase
from fastvideo_dist.device_communicators.pynccl import PyNcclCommunicator

__all__ = ["CudaCommunicator"]


class CudaCommunicator(DeviceCommunicatorBase):
    """The base class's calls; the backend of the group chooses the transport by the tensor.

    Of a group of the backend "fastvideo" that is NCCL for CUDA tensors, by the ops: differentiable,
    compiled, and captured in CUDA graphs once the ranks are connected (`graph_capture`).

    Raises:
        ValueError: `device` is no CUDA device.
        RuntimeError: this process sees no GPU.
    """

    def __init__(
        self,
        cpu_group: ProcessGroup,
        device: torch.device | None = None,
        device_group: ProcessGroup | None = None,
        unique_name: str = "",
    ) -> None:
        if device is not None and device.type != "cuda":
            raise ValueError(
                f"CudaCommunicator {unique_name!r}: the device is {device}; CpuCommunicator serves "
                "the CPU"
            )
        if not torch.cuda.is_available():
            raise RuntimeError(
                f"CudaCommunicator {unique_name!r}: no GPU is present (torch {torch.__version__}, "
                f"CUDA {torch.version.cuda}); use CpuCommunicator"
            )
        super().__init__(cpu_group, device, device_group, unique_name)
        self._pynccl_comm: PyNcclCommunicator | None = None

    @property
    def pynccl_comm(self) -> PyNcclCommunicator | None:
        """NCCL on streams of the caller's choice; None in a group of one rank.

        Not what the calls here use, so it is made when first asked for: by all ranks, as that is
        collective.
        """
        if self._pynccl_comm is None and self.world_size > 1:
            self._pynccl_comm = PyNcclCommunicator(self.cpu_group, self.device)
        return self._pynccl_comm

    def all_reduce(self, input_: Tensor, op: ReduceOp | ReduceOp.RedOpType | None = None) -> Tensor:
        """As in the base class; None means SUM."""
        return super().all_reduce(input_, op)

    def recv(self, size: torch.Size, dtype: torch.dtype, src: int | None = None) -> Tensor:
        """As in the base class; the tensor is on `device`."""
        return super().recv(size, dtype, src)

    def send(self, tensor: Tensor, dst: int | None = None) -> None:
        """As in the base class."""
        super().send(tensor, dst)

    def destroy(self) -> None:
        """As in the base class; with `pynccl_comm`, if it was made."""
        comm, self._pynccl_comm = self._pynccl_comm, None
        if comm is not None:
            comm.destroy()
        super().destroy()
