"""Each collective of `nccl.Communicator` against single-process torch, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import reference
from face.jobs import FLOATS, INTEGERS, MOVED, WORLD_SIZES, as_array, connect, inputs, same
from fastvideo_dist import nccl
from harness import run_ranks

OPS = {
    nccl.SUM: "SUM",
    nccl.PROD: "PRODUCT",
    nccl.MAX: "MAX",
    nccl.MIN: "MIN",
    nccl.AVG: "AVG",
}
COUNTS = [1, 2, 7, 1000, 100_003]


def check_reductions(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        for dtype in INTEGERS + FLOATS:
            for op, name in OPS.items():
                given = inputs(world_size, 1003, dtype)
                wanted = reference.all_reduce(given, name)
                out = torch.empty_like(given[rank])
                comm.allreduce(given[rank], out, op)
                same(out, wanted, (dtype, op))
                comm.reduce(given[rank], given[rank], op)  # in place
                same(given[rank], wanted, (dtype, op, "in place"))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_type_and_reduction(world_size: int) -> None:
    run_ranks(check_reductions, world_size)


def check_bool(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        for op in (nccl.SUM, nccl.PROD, nccl.MAX, nccl.MIN):
            given = inputs(world_size, 65, torch.bool)
            out = torch.empty_like(given[rank])
            comm.allreduce(given[rank], out, op)
            same(out, reference.all_reduce(given, OPS[op]), op)


def test_bool_is_any_or_all() -> None:
    run_ranks(check_bool, 3)


def check_roots(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        for root in range(world_size):
            for count in COUNTS:
                given = inputs(world_size, count, torch.float32, seed=count)
                wanted = reference.all_reduce(given)
                mine = as_array(given[rank])
                out = np.full(count + 2, -1, np.float32)  # longer than need be
                comm.reduce(mine, out if rank == root else None, nccl.SUM, root)
                if rank == root:
                    same(out[:count], wanted, ("reduce", root, count))
                    assert (out[count:] == -1).all()

                out = np.full(count, -1, np.float32)
                comm.broadcast(mine if rank == root else None, out, root)
                same(out, given[root], ("broadcast", root, count))

                whole = np.full(world_size * count, -1, np.float32)
                comm.gather(mine, whole if rank == root else "ignored", root)
                if rank == root:
                    same(whole, torch.cat(given), ("gather", root, count))

                source = as_array(torch.cat(given)) if rank == root else None
                out = np.full(count, -1, np.float32)
                comm.scatter(source, out, root)
                same(out, given[rank], ("scatter", root, count))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_calls_with_every_root(world_size: int) -> None:
    run_ranks(check_roots, world_size)


def check_rootless(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        for count in COUNTS:
            given = inputs(world_size, count, torch.int64, seed=count)
            whole = np.full(world_size * count + 1, -1)
            comm.allgather(as_array(given[rank]), whole)
            same(whole[:-1], torch.cat(given), ("allgather", count))
            assert whole[-1] == -1

            given = inputs(world_size, world_size * count, torch.int64, seed=count)
            lists = [list(tensor.chunk(world_size)) for tensor in given]
            out = np.full(count + 1, -1)
            comm.reduce_scatter(as_array(given[rank]), out, nccl.MAX)
            same(out[:-1], reference.reduce_scatter(lists, "MAX")[rank], ("reduce_scatter", count))
            assert out[-1] == -1

            whole = np.full(world_size * count + 1, -1)
            comm.alltoall(as_array(given[rank]), whole)
            same(whole[:-1], torch.cat(reference.all_to_all(lists)[rank]), ("alltoall", count))
            assert whole[-1] == -1


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_calls_without_a_root(world_size: int) -> None:
    run_ranks(check_rootless, world_size)


def check_moved(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        for dtype in INTEGERS + FLOATS + MOVED:
            given = inputs(world_size, world_size * 129, dtype)
            lists = [list(tensor.chunk(world_size)) for tensor in given]
            out = torch.empty_like(given[rank])
            comm.alltoall(given[rank], out)
            same(out, torch.cat(reference.all_to_all(lists)[rank]), dtype)
            whole = torch.empty(world_size * out.numel(), dtype=dtype)
            comm.allgather(given[rank], whole)
            same(whole, torch.cat(given), dtype)
            comm.broadcast(given[0], out, 0)
            same(out, given[0], dtype)


def test_every_type_is_moved() -> None:
    run_ranks(check_moved, 3)


def check_in_place(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        for count in (3, 50_000):
            given = inputs(world_size, count, torch.float32, seed=count)
            for root in (None, *range(world_size)):
                whole = torch.zeros(world_size * count)
                mine = whole[rank * count : (rank + 1) * count]
                mine.copy_(given[rank])
                comm.gather(mine, whole, root)
                if root in (None, rank):
                    same(whole, torch.cat(given), ("gather", root, count))

            for root in range(world_size):
                whole = torch.cat(given) if rank == root else torch.zeros(world_size * count)
                mine = whole[rank * count : (rank + 1) * count]
                comm.scatter(whole, mine, root)
                same(mine, given[rank], ("scatter", root, count))
                data = given[root].clone() if rank == root else torch.zeros(count)
                comm.broadcast(data, data, root)
                same(data, given[root], ("broadcast", root, count))
                data = given[rank].clone()
                comm.reduce(data, data, nccl.SUM, root)
                wanted = reference.all_reduce(given) if rank == root else given[rank]
                same(data, wanted, ("reduce", root, count))

            given = inputs(world_size, world_size * count, torch.float32, seed=count)
            lists = [list(tensor.chunk(world_size)) for tensor in given]
            mine = given[rank][rank * count : (rank + 1) * count]
            wanted = reference.reduce_scatter(lists)[rank]
            comm.reduce_scatter(given[rank], mine, nccl.SUM)
            same(mine, wanted, ("reduce_scatter", count))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_in_place(world_size: int) -> None:
    run_ranks(check_in_place, world_size)


def check_empty(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        nothing = np.empty(0)
        comm.allreduce(nothing, nothing, nccl.SUM)
        comm.broadcast(nothing, nothing, 0)
        comm.allgather(nothing, np.empty(0))


def test_no_elements() -> None:
    run_ranks(check_empty, 2)


def check_shapes(rank: int, world_size: int) -> None:
    """Only the number of elements counts."""
    with connect(rank, world_size) as comm:
        cube = np.arange(24, dtype=np.float64).reshape(2, 3, 4) * (rank + 1)
        out = np.empty(24)
        comm.allreduce(cube, out, nccl.SUM)
        total = world_size * (world_size + 1) / 2
        assert np.array_equal(out, np.arange(24) * total)
        scalar = np.array(float(rank))
        comm.allreduce(scalar, scalar, nccl.MAX)
        assert scalar == world_size - 1


def test_any_shape() -> None:
    run_ranks(check_shapes, 2)
