"""What may be a buffer, and that it is used in place."""

from __future__ import annotations

import array
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from face.jobs import connect, refused
from fastvideo_dist import nccl
from harness import run_ranks


class Producer:
    """Exports by DLPack alone, as arrays of JAX and others do."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._tensor.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


class Old:
    """The same, before DLPack 1.0."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, stream: Any = None) -> Any:
        return self._tensor.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> Any:
        return self._tensor.__dlpack_device__()


class Immutable(Old):
    """As an array of JAX of a type that Python's buffer protocol has not."""

    __module__ = "jaxlib._jax"


class Broken:
    def __dlpack__(self, **kwargs: Any) -> Any:
        raise BufferError("not today")

    def __dlpack_device__(self) -> Any:
        return (1, 0)


class Scaled(np.ndarray):  # type: ignore[type-arg]
    """A subclass is an array as any other."""


def check_kinds(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:

        def doubled(send: Any, recv: Any) -> None:
            comm.allreduce(send, recv, nccl.SUM)

        ones = np.ones(5)
        for kind in (
            ones.copy(),
            ones.copy().view(Scaled),
            torch.ones(5, dtype=torch.float64),
            array.array("d", [1] * 5),
            memoryview(bytearray(ones.tobytes())).cast("d"),
            np.ones((5, 2)).T[1].copy(),
            np.ones(11)[3:8],
        ):
            doubled(kind, kind)
            assert np.asarray(kind).tolist() == [world_size] * 5, type(kind)

        target = torch.zeros(5, dtype=torch.float64)
        doubled(Producer(torch.ones(5, dtype=torch.float64)), Producer(target))
        assert target.tolist() == [world_size] * 5
        doubled(Old(target), Old(target))
        assert target.tolist() == [world_size**2] * 5
        frozen = np.ones(5)
        frozen.setflags(write=False)
        doubled(Producer(frozen), target)
        refused(lambda: doubled(target, Producer(frozen)), "recvbuf is read-only, and the result")
        doubled(Immutable(torch.ones(5, dtype=torch.float64)), target)
        refused(lambda: doubled(target, Immutable(target)), "recvbuf is immutable; receive into a")
        out = bytearray(4)
        doubled(b"\1\2\3\4", out)
        assert list(out) == [world_size * k for k in (1, 2, 3, 4)]
        refused(lambda: doubled(Broken(), out), "sendbuf could not be taken by DLPack: not today")
        refused(lambda: doubled(Producer(torch.zeros(4, 4).t()), out), "sendbuf is not contiguous")


def test_what_may_be_a_buffer() -> None:
    run_ranks(check_kinds, 2)


def check_types_of_arrays(rank: int, world_size: int) -> None:
    """Every spelling of a type; on Linux "l" and "q" are both int64."""
    with connect(rank, world_size) as comm:
        for code in "?bBilqILQefd":
            x = np.ones(4, code)
            comm.allreduce(x, x, nccl.MAX)
            assert (x == 1).all()
        for code in "bBiIlLqQfd":
            values = array.array(code, [1, 2, 3])
            comm.allreduce(values, values, nccl.MAX)
            assert values.tolist() == [1, 2, 3]


def test_types_of_arrays() -> None:
    run_ranks(check_types_of_arrays, 2)


class FakeArray:
    """An array of ml_dtypes, as far as its memory is asked for: NumPy knows its type by name."""

    def __init__(self, raw: np.ndarray[Any, Any], name: str) -> None:
        self._raw = raw
        self.dtype = type("dtype", (), {"name": name})()
        self.__array_interface__ = raw.__array_interface__

    def view(self, dtype: str) -> np.ndarray[Any, Any]:
        return self._raw.view(dtype)


def check_ml_dtypes(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        raw = torch.full((6,), 1.5, dtype=torch.bfloat16).view(torch.uint16).numpy()
        out = torch.zeros(6, dtype=torch.bfloat16)
        comm.allreduce(FakeArray(raw, "bfloat16"), out, nccl.SUM)  # type: ignore[arg-type]
        assert out.tolist() == [1.5 * world_size] * 6


def test_arrays_of_ml_dtypes() -> None:
    run_ranks(check_ml_dtypes, 2)


def check_autograd(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        weight = torch.ones(3, requires_grad=True)
        before = weight._version
        comm.broadcast(weight, weight, 0)
        assert weight._version == before + 1
        with torch.inference_mode():
            x = torch.ones(3)
            comm.allreduce(x, x, nccl.SUM)
            assert x.tolist() == [world_size] * 3


def test_a_written_tensor_is_known_as_written() -> None:
    run_ranks(check_autograd, 2)


def check_kept(rank: int, world_size: int) -> None:
    """Memory is the call's while a group is open: nobody else refers to these arrays."""
    with connect(rank, world_size) as comm:
        out = np.zeros(100_000)
        with nccl.group():
            comm.allreduce(np.ones(100_000), out, nccl.SUM)
            junk = [np.full(100_000, 7.0) for _ in range(4)]
        assert (out == world_size).all()
        held = bytearray(8)
        with nccl.group():
            comm.broadcast(held, held, 0)
            try:
                held.extend(b"more")
            except BufferError:
                pass
            else:
                raise AssertionError("a buffer in use was moved")
        held.extend(b"more")
        del junk


def test_memory_is_kept_until_the_call_is_made() -> None:
    run_ranks(check_kept, 2)


def test_numpy_is_not_needed() -> None:
    """Neither imported nor missed."""
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "import torch\n"
        "from fastvideo_dist import nccl\n"
        "with nccl.Communicator.init(1, 0, nccl.get_unique_id()) as comm:\n"
        "    x = torch.ones(3); comm.allreduce(x, x, comm.create_pre_mul_sum(2.0, nccl.FLOAT32))\n"
        "    y = bytearray(3); comm.broadcast(y, y, 0)\n"
        "    assert x.tolist() == [2, 2, 2]\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        check=False, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
