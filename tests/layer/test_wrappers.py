"""Tensors that wrap others: strides and a size of their own, and no memory behind them."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from fastvideo_dist import parallel_state as ps
from fastvideo_dist.tensor_dict import encode
from harness import run_ranks
from layer.jobs import fails, job


def check_dtensor(rank: int, world_size: int) -> None:
    with job(rank, world_size):
        group = ps.get_sp_group()
        mesh = DeviceMesh.from_group(group.device_group, "cpu")
        whole = DTensor.from_local(torch.full((3,), float(rank)), mesh, [Shard(0)])
        if rank == 0:
            for send in (group.send, lambda x, to: group.send_tensor_dict({"w": x}, to)):
                with fails(TypeError, "DTensor", "to_local()"):
                    send(whole, 1)
            group.send_tensor_dict({"w": whole.to_local()}, 1)
        else:
            received = group.recv_tensor_dict(0)
            assert received is not None
            assert received["w"].tolist() == [0.0] * 3
        came = group.broadcast_object(whole)  # pickles itself, as one part of the whole
        assert isinstance(came, DTensor)
        assert came.to_local().tolist() == [0.0] * 3


def test_a_dtensor() -> None:
    run_ranks(check_dtensor, 2)


def test_a_fake_tensor() -> None:
    with FakeTensorMode():
        fake = torch.empty(10_000)
    with pytest.raises(TypeError, match=r"\['x'\]\['y'\] is a FakeTensor"):
        encode({"x": {"y": fake}})
