"""Dictionaries of tensors and objects between ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from c10d import cases
from fastvideo_dist import GroupCoordinator, broadcasts
from fastvideo_dist import parallel_state as ps
from fastvideo_dist.message_queue import MessageQueue
from fastvideo_dist.tensor_dict import encode
from harness import run_ranks
from layer.jobs import fails, job

BACKENDS = pytest.mark.parametrize("backend", ["nccl", "gloo"])


def over(backend: str, world_size: int) -> GroupCoordinator:
    return ps.init_model_parallel_group([list(range(world_size))], 0, backend, group_name="test")


def make(rank: int) -> dict[Any, Any]:
    """Every dtype, every layout, nested, with what is no tensor between."""
    small = {str(dtype): cases.make(rank, (3, 5), dtype) for dtype in cases.MOVED}
    large = cases.make(rank, (300, 200), torch.float32)
    return {
        "small": small,
        "large": large,
        "transposed": large.t(),
        "sliced": large[:, ::3],
        "expanded": large[:1].expand(300, 200),
        "conj": cases.make(rank, (40,), torch.complex64).conj(),
        "scalar": torch.tensor(rank),
        "empty": torch.empty(0, 7, dtype=torch.bool),
        "parameter": torch.nn.Parameter(torch.full((2,), float(rank))),
        "nested": {"a": {"b": large.bfloat16()}, 7: None, "nothing": {}},
        "list": [torch.full((3,), float(rank)), rank, "text"],
        "array": np.arange(20_000) + rank,
        ("a", 1): rank,
    }


def check(received: Any, wanted: Any, where: str = "") -> None:
    if isinstance(wanted, Tensor):
        assert isinstance(received, Tensor), where
        assert received.is_contiguous(), where
        cases.same_bits(received, wanted.detach().resolve_conj().contiguous(), where)
    elif isinstance(wanted, np.ndarray):
        assert np.array_equal(received, wanted), where
    elif isinstance(wanted, dict):
        assert list(received) == list(wanted), where
        for key in wanted:
            check(received[key], wanted[key], f"{where}[{key!r}]")
    elif isinstance(wanted, list):
        for one, other in zip(received, wanted, strict=True):
            check(one, other, where)
    else:
        assert received == wanted, where


def check_broadcast(rank: int, world_size: int, backend: str) -> None:
    with job(rank, world_size):
        group = over(backend, world_size)
        for src in range(world_size):
            mine = make(rank) if rank == src else {"ignored": 1}
            received = group.broadcast_tensor_dict(mine, src)
            assert (received is mine) == (rank == src)
            if rank != src:
                check(received, make(src))
            mine = make(rank)
            received = group.broadcast_object(mine if rank == src else None, src)
            assert (received is mine) == (rank == src)
            assert received["nested"]["a"]["b"].dtype == torch.bfloat16
            received["large"].add_(1)  # its own memory, and writable
            received["array"] += 1
            box = [mine, "x"] if rank == src else [None, None]
            assert group.broadcast_object_list(box, src) is box
            assert box[0][("a", 1)] == src
        assert group.broadcast_tensor_dict({} if rank == 0 else None) == {}


@BACKENDS
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_broadcast(world_size: int, backend: str) -> None:
    run_ranks(check_broadcast, world_size, backend=backend)


def check_long_broadcasts(rank: int, world_size: int) -> None:
    """Longer than the queue they go through, and so written while they are read."""
    with job(rank, world_size):
        group = over("fastvideo", world_size)
        ring = broadcasts._CHUNK_BYTES * broadcasts._CHUNKS
        for src in range(world_size):
            for nbytes in (ring + 1, ring + 1, 3 * ring):
                x = (torch.arange(nbytes) % 251).to(torch.uint8)
                got = group.broadcast_object(x if rank == src else None, src)
                assert torch.equal(got, x)
                mine = {"x": x, "y": x[:9]} if rank == src else None
                got = group.broadcast_tensor_dict(mine, src)
                assert torch.equal(got["x"], x)
                assert torch.equal(got["y"], x[:9])


@pytest.mark.parametrize("world_size", [2, 3])
def test_broadcasts_longer_than_the_queue(world_size: int) -> None:
    run_ranks(check_long_broadcasts, world_size)


def check_transfers(rank: int, world_size: int, backend: str) -> None:
    with job(rank, world_size):
        group = over(backend, world_size)
        right, left = (rank + 1) % world_size, (rank - 1) % world_size
        # Around the ring, all at once: nobody could receive before it has sent.
        handle = group.isend_tensor_dict(make(rank))
        check(group.recv_tensor_dict(), make(left))
        assert handle.wait() is None
        assert handle.is_completed()
        # Two under way from each of two senders, waited for backwards.
        sends = [
            group.isend_tensor_dict(
                {"n": n, "x": torch.full((50_000,), float(n)), "from": rank}, to
            )
            for n in range(2)
            for to in {left, right}
        ]
        receives = [(n, s, group.irecv_tensor_dict(s)) for n in range(2) for s in {left, right}]
        for n, source, one in reversed(receives):
            got = one.wait(timedelta(seconds=20))
            assert got is one.wait()
            assert (got["n"], got["from"]) == (n, source)
            assert (got["x"] == n).all()
            assert one.is_completed()
        for send in sends:
            send.wait()
        for src in range(world_size):
            for dst in range(world_size):
                if src == dst:
                    continue
                if rank == src:
                    group.send_object({"video": np.ones((4, 64, 64, 3)), "from": src}, dst)
                    group.send_object(None, dst)
                    assert group.send_tensor_dict(make(src), dst) is None
                elif rank == dst:
                    assert group.recv_object(src)["from"] == src
                    assert group.recv_object(src) is None
                    check(group.recv_tensor_dict(src), make(src))
        group.barrier()


@BACKENDS
@pytest.mark.parametrize("world_size", [2, 3])
def test_send_and_recv(world_size: int, backend: str) -> None:
    run_ranks(check_transfers, world_size, backend=backend)


def check_polling(rank: int, world_size: int) -> None:
    with job(rank, world_size):
        group = ps.get_sp_group()
        if rank == 0:
            handle = group.irecv_tensor_dict(1)
            assert not handle.is_completed()
            group.barrier()
            while not handle.is_completed():
                pass
            got = handle.wait()
            assert got is not None
            assert got["x"].sum() == 100_000
        else:
            group.barrier()
            group.send_tensor_dict({"x": torch.ones(100_000)}, 0)


def test_a_handle_may_be_polled() -> None:
    run_ranks(check_polling, 2)


def check_all_gather_group(rank: int, world_size: int) -> None:
    """Two stages of two ranks; each sends half of what both have, the receivers join the halves."""
    with job(rank, world_size, tp=2):
        pipeline = ps.init_model_parallel_group([[0, 2], [1, 3]], 0, "nccl", group_name="pp")
        tensors = make(5) | {"odd": torch.arange(40_001)}
        if rank < 2:
            pipeline.send_tensor_dict(tensors, all_gather_group=ps.get_tp_group())
        else:
            check(pipeline.recv_tensor_dict(all_gather_group=ps.get_tp_group()), tensors)
        if rank < 2:
            pipeline.send_tensor_dict(tensors, all_gather_group=ps.get_tp_group())
        else:
            with fails(ValueError, "2 parts", "1 ranks", "both sides"):
                pipeline.recv_tensor_dict()


def test_all_gather_group() -> None:
    run_ranks(check_all_gather_group, 4)


def check_other_groups(rank: int, world_size: int) -> None:
    """FastVideo ignores the group arguments."""
    with job(rank, world_size):
        world, pairs = ps.get_world_group(), ps.initialize_sequence_parallel_group(2)
        first = pairs.first_rank
        got = world.broadcast_tensor_dict({"x": torch.tensor(rank)}, first, pairs.device_group)
        assert got is not None
        assert got["x"] == first
        box = [rank]
        assert world.broadcast_object_list(box, first, pairs.cpu_group) == [first]
        other = 0 if first else 2
        with fails(ValueError, f"rank {other} of the world", str(pairs.ranks)):
            world.broadcast_object_list(box, other, pairs.cpu_group)


def test_a_group_that_is_given_is_used() -> None:
    run_ranks(check_other_groups, 4)


def check_uneven(rank: int, world_size: int) -> None:
    with job(rank, world_size):
        box = [1, 2, 3] if rank == 0 else [None]
        ending: Any = fails(ValueError, "1 elements", "has 3", f"rank {rank}", "world:0")
        with contextlib.nullcontext() if rank == 0 else ending:
            ps.get_world_group().broadcast_object_list(box)


def test_lists_of_other_lengths_are_refused() -> None:
    run_ranks(check_uneven, 2)


def check_out_of_step(rank: int, world_size: int, case: str) -> None:
    with job(rank, world_size):
        group = ps.get_sp_group()
        if rank == 0:
            ending: Any = fails(dist.DistBackendError, "sp:0", "broadcast_tensor_dict")
            with ending if case == "kind" else contextlib.nullcontext():
                group.broadcast_tensor_dict({"x": torch.ones(3)})
        elif case == "kind":
            with fails(dist.DistBackendError, "sp:0", "broadcast_object"):
                group.broadcast_object()
            with fails(dist.DistBackendError, "given up", "broadcast_object from rank 0"):
                group.broadcast_object()
        else:
            group._broadcaster(None, 0)[0]._calls = 7
            with fails(dist.DistBackendError, "number 7", "number 0", "disagree", "rank 1"):
                group.broadcast_tensor_dict()
            with fails(dist.DistBackendError, "given up", "disagree"):
                group.broadcast_object()


@pytest.mark.parametrize("case", ["kind", "number"])
def test_ranks_out_of_step_are_told(case: str) -> None:
    run_ranks(check_out_of_step, 2, case=case)


def check_deadline(rank: int, world_size: int) -> None:
    ps.init_distributed_environment(world_size, rank)
    timeout = timedelta(seconds=1)
    group = ps.init_model_parallel_group([[0, 1]], 0, "nccl", group_name="test", timeout=timeout)
    group.broadcast_object(1)
    if rank == 1:
        with fails(dist.DistBackendError, "test:0", "waited 1.0 s", "missing: rank 0"):
            group.broadcast_object()
    ps.get_world_group().barrier()
    ps.cleanup_dist_env_and_memory()


def test_a_broadcast_has_the_deadline_of_the_group() -> None:
    run_ranks(check_deadline, 2)


def check_queue(rank: int, world_size: int) -> None:
    """The tensor parallel group has a queue; its writer need not wait for the readers."""
    with job(rank, world_size, tp=world_size):
        group = ps.get_tp_group()
        assert isinstance(group.mq_broadcaster, MessageQueue)
        assert ps.get_sp_group().mq_broadcaster is None
        if rank == 0:
            for number in range(4):
                group.mq_broadcaster.enqueue(number)
        group.barrier()
        if rank != 0:
            assert [group.mq_broadcaster.dequeue() for _ in range(4)] == [0, 1, 2, 3]
        assert group.broadcast_object(rank) == 0
        check(group.broadcast_object(make(0) if rank == 0 else None)["large"], make(0)["large"])
        assert group.broadcast_object(rank, src=1) == 1  # the queue has one writer


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_queue(world_size: int) -> None:
    run_ranks(check_queue, world_size)


def test_what_cannot_travel_is_named() -> None:
    sparse = torch.eye(3).to_sparse()
    for bad in (sparse, torch.empty(2, device="meta")):
        with pytest.raises(TypeError, match=r"\['a'\]\['b'\]"):
            encode({"a": {"b": bad}})
    with pytest.raises(TypeError, match="got list"):
        encode([torch.ones(1)])  # type: ignore[arg-type]


def test_tensors_are_not_pickled() -> None:
    tensor = torch.full((1000,), 1.25)
    head, buffers = encode({"x": tensor, "y": {"z": tensor}})
    assert len(head) < 400
    assert [buffer.data_ptr() for buffer in buffers] == 2 * [tensor.data_ptr()]


def check_wrong_kind(rank: int, world_size: int) -> None:
    ps.init_distributed_environment(world_size, rank)
    group = ps.get_world_group()
    if rank == 0:
        with contextlib.suppress(dist.DistBackendError):
            group.send_object(1, 1)
            group.barrier()
    else:
        with fails(dist.DistBackendError, "recv", "4096", "4160"):
            group.recv_tensor_dict(0)
    ps.cleanup_dist_env_and_memory()


def test_an_object_is_no_dictionary() -> None:
    run_ranks(check_wrong_kind, 2)


BROADCASTS: dict[str, Callable[[GroupCoordinator, int], object]] = {
    "broadcast_object": lambda group, src: group.broadcast_object({"a": 1}, src),
    "broadcast_object_list": lambda group, src: group.broadcast_object_list([1], src),
    "broadcast_tensor_dict": lambda group, src: group.broadcast_tensor_dict({}, src),
}


def check_sources(rank: int, world_size: int, backend: str, before: int) -> None:
    """Each rank takes itself for the source, or the next one; with and without queues made."""
    with job(rank, world_size):
        cases = [(name, shift) for name in BROADCASTS for shift in (0, 1)]
        for number, (name, shift) in enumerate(cases):
            group = ps.init_model_parallel_group(
                [list(range(world_size))],
                *(0, backend),
                group_name="test",
                timeout=timedelta(seconds=20 + number),  # so that it is a new one
            )
            for src in range(before):
                group.broadcast_object(np.ones(100_000), src)
            src = (rank + shift) % world_size
            called = f"{name.removesuffix('_list')} from rank {src}"
            with fails(dist.DistBackendError, called, f"rank {rank}", group.unique_name):
                BROADCASTS[name](group, src)
            group.destroy()


@BACKENDS
@pytest.mark.parametrize("before", [0, 2])
def test_ranks_that_disagree_on_the_source_all_raise(backend: str, before: int) -> None:
    run_ranks(check_sources, 3, backend=backend, before=before)


def check_other_coordinator(rank: int, world_size: int) -> None:
    """World and sequence group share a process group, but not their calls."""
    with job(rank, world_size):
        group = ps.get_sp_group() if rank else ps.get_world_group()
        with fails(dist.DistBackendError, group.unique_name, "broadcast_object from rank 0"):
            group.broadcast_object(rank)


def test_ranks_that_take_different_coordinators_are_told() -> None:
    run_ranks(check_other_coordinator, 2)


def check_uneven_parts(rank: int, world_size: int) -> None:
    """The senders of an all_gather_group have different dictionaries of equal size."""
    with job(rank, world_size, tp=2):
        pipeline = ps.init_model_parallel_group([[0, 2], [1, 3]], 0, "nccl", group_name="pp")
        shape = (300, 400) if rank else (400, 300)
        if rank < 2:
            pipeline.send_tensor_dict({"x": torch.ones(shape)}, all_gather_group=ps.get_tp_group())
        else:
            with fails(
                dist.DistBackendError, "[300, 400]", "[400, 300]", "recv_tensor_dict", "['x']"
            ):
                pipeline.recv_tensor_dict(all_gather_group=ps.get_tp_group())
        ps.get_world_group().barrier()


def test_parts_of_different_dictionaries_are_not_joined() -> None:
    run_ranks(check_uneven_parts, 4)
