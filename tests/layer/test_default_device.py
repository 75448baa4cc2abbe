"""The user's default device is the user's: what the layer makes for itself is the CPU's."""

from __future__ import annotations

from unittest import mock

import torch

from fastvideo_dist import _remote_queue
from fastvideo_dist.message_queue import MessageQueue
from harness import run_ranks
from layer.jobs import job
from layer.test_messages import BACKENDS, check, over


def check_default_device(rank: int, world_size: int, backend: str) -> None:
    """As while a model is built without memory: what the layer needs is the CPU's all the same."""
    sent = {"x": torch.arange(3), "large": torch.ones(300_000), "none": torch.empty(0, 7)}
    elsewhere = mock.patch.object(_remote_queue, "host_identity", return_value=("host", rank))
    with job(rank, world_size), torch.device("meta"):
        group = over(backend, world_size)
        for message in (sent, {"x": sent["x"]}):
            check(group.broadcast_tensor_dict(message if rank == 0 else None), message)
            check(group.broadcast_object(message if rank == 0 else None), message)
            if rank == 0:
                group.send_object(message, 1)
                group.send_tensor_dict(message, 1)
            else:
                check(group.recv_object(0), message)
                check(group.recv_tensor_dict(0), message)
        group.broadcast(sent["x"])
        group.barrier()
        with elsewhere:
            queue = MessageQueue.create_from_process_group(group.cpu_group, 1 << 16, 3)
        check(queue.broadcast_object(sent if rank == 0 else None), sent)
        group.barrier()
        queue.close()


@BACKENDS
def test_the_default_device_is_no_matter(backend: str) -> None:
    run_ranks(check_default_device, 2, backend=backend)
