"""Collectives on CPU tensors."""

from __future__ import annotations

from fastvideo_dist.device_communicators.base_device_communicator import DeviceCommunicatorBase

__all__ = ["CpuCommunicator"]


class CpuCommunicator(DeviceCommunicatorBase):
    """`DeviceCommunicatorBase` as it is: over shared memory, by the backend "fastvideo"."""
