"""`create_pre_mul_sum`: results in every type, what a scalar may be, the life of a CustomRedOp."""

from __future__ import annotations

import array
import gc
from typing import Any

import numpy as np
import pytest
import torch

import reference
from face.jobs import FLOATS, INTEGERS, connect, inputs, refused, same
from fastvideo_dist import nccl
from fastvideo_dist.nccl.types import DTYPES
from harness import run_ranks


def nccl_type(dtype: torch.dtype) -> nccl.NcclDataType:
    return DTYPES[str(dtype).removeprefix("torch.")]


def check_floats(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        for dtype in FLOATS:
            op = comm.create_pre_mul_sum(1 / 3, nccl_type(dtype))
            factor = torch.tensor(1 / 3, dtype=torch.float64).to(dtype).item()
            assert op.scalar == factor
            given = inputs(world_size, 1003, dtype)
            wanted = reference.all_reduce(given, "PREMUL_SUM", factor)
            out = torch.empty_like(given[rank])
            comm.allreduce(given[rank], out, op)
            torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_floating_point(world_size: int) -> None:
    run_ranks(check_floats, world_size)


def check_integers(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        for dtype in INTEGERS:
            signed = not str(dtype).startswith("torch.uint")
            for scalar in (0, 1, 3, *([-5] if signed else [])):
                op = comm.create_pre_mul_sum(scalar, nccl_type(dtype))
                count = 7 * world_size
                arrays = [tensor.numpy() for tensor in inputs(world_size, count, dtype)]
                total = sum(array * np.array(scalar).astype(array.dtype) for array in arrays)
                wanted = torch.from_numpy(np.asarray(total, arrays[0].dtype))
                mine = torch.from_numpy(arrays[rank].copy())
                out = torch.empty_like(mine)
                comm.allreduce(mine, out, op)
                same(out, wanted, (dtype, scalar))
                part = torch.empty(7, dtype=dtype)
                comm.reduce_scatter(mine, part, op)
                same(part, wanted[7 * rank : 7 * rank + 7], (dtype, scalar))
                for root in range(world_size):
                    comm.reduce(mine, out if rank == root else None, op, root)
                    if rank == root:
                        same(out, wanted, (dtype, scalar, root))


@pytest.mark.parametrize("world_size", [1, 3])
def test_integers(world_size: int) -> None:
    run_ranks(check_integers, world_size)


def check_extremes(rank: int, world_size: int) -> None:
    """No number passes through a float."""
    with connect(rank, world_size) as comm:
        op = comm.create_pre_mul_sum(2**62 + 1)
        assert op.datatype == nccl.INT64
        out = np.zeros(1, np.int64)
        comm.allreduce(np.full(1, 1 + rank, np.int64), out, op)
        assert out[0] == (3 * (2**62 + 1) + 2**63) % 2**64 - 2**63
        op = comm.create_pre_mul_sum(2**64 - 1, nccl.UINT64)
        wide = np.zeros(1, np.uint64)
        comm.allreduce(np.ones(1, np.uint64), wide, op)
        assert wide[0] == 2**64 - 2


def test_integers_beyond_floats() -> None:
    run_ranks(check_extremes, 2)


def check_scalars(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        make = comm.create_pre_mul_sum
        cases: list[tuple[Any, nccl.NcclDataType | None, nccl.NcclDataType, float]] = [
            (2, None, nccl.INT64, 2),
            (0.5, None, nccl.FLOAT64, 0.5),
            (2, nccl.FLOAT32, nccl.FLOAT32, 2),
            (4.0, nccl.UINT8, nccl.UINT8, 4),
            (np.float32(0.25), None, nccl.FLOAT32, 0.25),
            (np.array([3], np.int32), None, nccl.INT32, 3),
            (np.array(0.1), nccl.FLOAT32, nccl.FLOAT32, float(np.float32(0.1))),
            (np.array([[7]]), nccl.INT8, nccl.INT8, 7),
            (torch.tensor([0.5], dtype=torch.bfloat16), None, nccl.BFLOAT16, 0.5),
            (torch.tensor(0.5), nccl.FLOAT32, nccl.FLOAT32, 0.5),
            (array.array("f", [1.5]), None, nccl.FLOAT32, 1.5),
        ]
        for scalar, wish, datatype, value in cases:
            op = make(scalar, wish)
            assert (op.datatype, op.scalar) == (datatype, value), (scalar, wish)
            assert op.is_valid
        scalar = np.array([2.0])
        op = make(scalar)
        scalar[0] = 100  # it was read
        out = np.zeros(1)
        comm.allreduce(np.ones(1), out, op)
        assert out == 2 * world_size


def test_what_a_scalar_may_be() -> None:
    run_ranks(check_scalars, 2)


def check_wrong_scalars(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        cases: list[tuple[Any, Any, str]] = [
            (True, None, "the scalar is a bool"),
            (np.array([True]), None, "the scalar is a bool"),
            ("2", None, "the scalar is a str; expected .* or an int or float"),
            (None, None, "the scalar is a NoneType"),
            (1j, None, "the scalar is a complex"),
            (np.zeros(2), None, "must have exactly 1 element, got 2"),
            (np.zeros(0), None, "must have exactly 1 element, got 0"),
            (torch.zeros(2), None, "must have exactly 1 element, got 2"),
            (torch.ones(1), nccl.FLOAT64, "scalar has dtype FLOAT32, requested FLOAT64"),
            (np.zeros(1, np.int16), None, "the scalar has dtype"),
            (0.5, nccl.INT32, "the scalar 0.5 is no integer, but the data type is INT32"),
            (float("nan"), nccl.INT32, "the scalar nan is no integer"),
            (128, nccl.INT8, r"the scalar 128 does not fit INT8 \(-128 to 127\)"),
            (-1, nccl.UINT64, "the scalar -1 does not fit UINT64"),
            (2**63, None, "does not fit INT64"),
            (1.0, nccl.FLOAT8E4M3, "FLOAT8E4M3 is moved, but not reduced"),
            (10**5000, None, "the scalar of 16610 bits does not fit INT64"),
            (10**400, nccl.FLOAT32, "the scalar does not fit FLOAT32"),
            (float("inf"), nccl.INT32, "the scalar inf is no integer"),
            (1.0, 7, "datatype must be an NcclDataType, got 7"),
        ]
        for scalar, datatype, words in cases:
            refused(
                lambda s=scalar, d=datatype: comm.create_pre_mul_sum(s, d),
                f"create_pre_mul_sum on .*{words}",
            )


def test_what_it_may_not_be() -> None:
    run_ranks(check_wrong_scalars, 1)


def check_life(rank: int, world_size: int) -> None:
    comm, other = connect(rank, world_size), connect(rank, world_size)
    x = np.ones(2, np.float32)
    op = comm.create_pre_mul_sum(2.0, nccl.FLOAT32)
    assert int(op) == op.op >= len(nccl.NcclRedOp)
    assert repr(op) == "<CustomRedOp: PreMulSum of FLOAT32 by 2.0>"
    refused(
        lambda: comm.allreduce(np.ones(2), np.ones(2), op), "op was created for FLOAT32, sendbuf"
    )
    boolean = torch.ones(2, dtype=torch.bool)
    byte = comm.create_pre_mul_sum(1, nccl.UINT8)
    refused(lambda: comm.allreduce(boolean, boolean, byte), "sendbuf has dtype bool")
    refused(lambda: other.allreduce(x, x, op), "op was created by another communicator")
    child = comm.split(0)
    refused(lambda: child.allreduce(x, x, op), "op was created by another communicator")
    op.close()
    op.close()
    assert not op.is_valid
    assert repr(op) == "<CustomRedOp: closed>"
    refused(lambda: comm.allreduce(x, x, op), "op has been closed and is no longer valid")
    for use in (lambda: op.op, lambda: int(op)):
        with pytest.raises(RuntimeError, match="has been closed and is no longer valid"):
            use()
    kept, aborted = comm.create_pre_mul_sum(2), other.create_pre_mul_sum(2)
    for _ in range(100):
        comm.create_pre_mul_sum(2)
    gc.collect()
    assert len(comm._customs) <= 3, "dropped reductions are kept"
    comm.allreduce(x, x, nccl.SUM)
    torch.distributed.barrier()
    comm.destroy()
    other.abort()
    assert not kept.is_valid
    assert not aborted.is_valid
    torch.distributed.barrier()
    child.destroy()


def test_the_life_of_a_custom_reduction() -> None:
    run_ranks(check_life, 2)
