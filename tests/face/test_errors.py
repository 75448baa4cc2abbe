"""All that can be wrong with arguments: NcclInvalid in words, and a communicator still usable."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch

from face.jobs import connect, refused
from fastvideo_dist import nccl
from fastvideo_dist.nccl import buffers
from harness import run_ranks

F = np.zeros
COUNT = "Buffer count mismatch: recvbuf must have {} elements, got {}"


def wrong_counts(c: nccl.Communicator, n: int) -> None:
    refused(lambda: c.allreduce(F(4), F(3), nccl.SUM), COUNT.format("at least 4", 3))
    refused(lambda: c.reduce(F(4), F(3), nccl.SUM, c.rank), COUNT.format("at least 4", 3))
    refused(lambda: c.broadcast(F(4), F(5), c.rank), COUNT.format("exactly 4", 5))
    refused(lambda: c.broadcast(F(4), F(3), c.rank), COUNT.format("exactly 4", 3))
    refused(lambda: c.allgather(F(4), F(4 * n - 1)), COUNT.format(f"at least {4 * n}", 4 * n - 1))
    refused(lambda: c.gather(F(4), F(4), c.rank), COUNT.format(f"at least {4 * n}", 4))
    refused(lambda: c.reduce_scatter(F(2 * n), F(1), nccl.SUM), COUNT.format("at least 2", 1))
    refused(
        lambda: c.alltoall(F(2 * n), F(2 * n - 1)), COUNT.format(f"at least {2 * n}", 2 * n - 1)
    )
    refused(lambda: c.scatter(F(2 * n), F(3), c.rank), COUNT.format("exactly 2", 3))


def remainders(c: nccl.Communicator, n: int) -> None:
    for elements in (0, 1, n - 1, n + 1, 5 * n - 1):
        words = f"sendbuf has {elements} elements, which do not divide among {n} ranks"
        refused(lambda e=elements: c.reduce_scatter(F(e), F(9), nccl.SUM), words)
        refused(lambda e=elements: c.alltoall(F(e), F(9)), words)
        refused(lambda e=elements: c.scatter(F(e), F(1), c.rank), words)


def wrong_types(c: nccl.Communicator, n: int) -> None:
    words = "Dtype mismatch: sendbuf has dtype float64, recvbuf has dtype float32"
    narrow = np.zeros(8, np.float32)
    refused(lambda: c.allreduce(F(4), narrow, nccl.SUM), words)
    refused(lambda: c.reduce(F(4), narrow, nccl.SUM, c.rank), words)
    refused(lambda: c.broadcast(F(8), narrow, c.rank), words)
    refused(lambda: c.allgather(F(1), narrow), words)
    refused(lambda: c.gather(F(1), narrow, c.rank), words)
    refused(lambda: c.reduce_scatter(F(n), narrow, nccl.SUM), words)
    refused(lambda: c.alltoall(F(n), narrow), words)
    refused(lambda: c.scatter(F(n), narrow, c.rank), words)
    boolean = torch.zeros(4, dtype=torch.bool)
    refused(
        lambda: c.allreduce(boolean, torch.zeros(4, dtype=torch.uint8), nccl.SUM),
        "sendbuf has dtype bool, recvbuf has dtype uint8",
    )


def wrong_roots(c: nccl.Communicator, n: int) -> None:
    for root in (-1, n, 2**40):
        words = f"root {root} is no rank; there are 0 to {n - 1}"
        refused(lambda r=root: c.reduce(F(1), F(1), nccl.SUM, r), words)
        refused(lambda r=root: c.broadcast(F(1), F(1), r), words)
        refused(lambda r=root: c.gather(F(1), F(n), r), words)
        refused(lambda r=root: c.scatter(F(n), F(1), r), words)
        words = f"peer {root} is no rank"
        refused(lambda r=root: c.send(F(1), r), words)
        refused(lambda r=root: c.recv(F(1), r), words)
    refused(lambda: c.broadcast(F(1), F(1), "0"), "root must be an int, got str")  # type: ignore[arg-type]
    refused(lambda: c.broadcast(F(1), F(1), None), "root must be an int")  # type: ignore[arg-type]
    refused(lambda: c.send(F(1), c.rank), "this rank itself; that is possible inside group")
    refused(lambda: c.recv(F(1), c.rank), "this rank itself")


def overlaps(c: nccl.Communicator, n: int) -> None:
    whole = F(8 * n)
    words = "sendbuf and recvbuf overlap; in place, sendbuf begins exactly at the beginning"
    refused(lambda: c.allreduce(whole[:4], whole[1:5], nccl.SUM), words)
    refused(lambda: c.allreduce(whole[1:5], whole[:4], nccl.SUM), words)
    refused(lambda: c.broadcast(whole[:4], whole[3:7], c.rank), words)
    place = f"in place, sendbuf begins exactly at element {2 * c.rank} of recvbuf"
    elsewhere = 2 * ((c.rank + 1) % n) + (n == 1)
    refused(lambda: c.allgather(whole[elsewhere : elsewhere + 2], whole), place)
    refused(lambda: c.gather(whole[elsewhere : elsewhere + 2], whole, c.rank), place)
    place = f"in place, recvbuf begins exactly at element {8 * c.rank} of sendbuf"
    elsewhere = 8 * ((c.rank + 1) % n) + (n == 1)
    apart = np.concatenate([whole, F(8)])
    mine = apart[elsewhere : elsewhere + 8]
    refused(lambda: c.reduce_scatter(apart[: 8 * n], mine, nccl.SUM), place)
    refused(lambda: c.scatter(apart[: 8 * n], mine, c.rank), place)
    words = "sendbuf and recvbuf share memory; alltoall is not done in place"
    refused(lambda: c.alltoall(whole, whole), words)
    refused(lambda: c.alltoall(whole[:n], whole[n - 1 :]), words)
    c.alltoall(whole[:n].copy(), whole[n:])
    c.allreduce(whole[:4], whole[4:], nccl.SUM)  # next to each other is apart


class Strange:
    """Exports nothing."""


def wrong_buffers(c: nccl.Communicator, n: int) -> None:
    square = F((4, 4))
    readonly = F(4)
    readonly.setflags(write=False)
    cases: list[tuple[Any, str]] = [
        (None, "is a NoneType; expected a torch tensor, a NumPy array or anything else with"),
        (3.5, "is a float; expected"),
        ([1.0, 2.0], "is a list; expected"),
        ("text", "is a str; expected"),
        (Strange(), "is a Strange; expected"),
        (square[:, ::2], "is not contiguous"),
        (square.T, "is not contiguous"),
        (np.asfortranarray(square), "is not contiguous"),
        (torch.zeros(4, 4)[:, 1], r"is not contiguous: shape \[4\], strides \[4\]"),
        (torch.zeros(4, 4).t(), "is not contiguous"),
        (torch.zeros(1).expand(4), "is not contiguous"),
        (torch.zeros(4, dtype=torch.complex64), "has dtype ComplexFloat, which NCCL does not know"),
        (torch.zeros(4, dtype=torch.int16), "has dtype Short, which NCCL does not know; it has"),
        (np.zeros(4, np.int16), 'has dtype "h"'),
        (np.zeros(4, np.complex64), 'has dtype "Zf"'),
        (np.zeros(4, ">f8"), 'has dtype ">d"'),
        (np.zeros(4, "f4,f4"), "has dtype"),
        (np.zeros(4, object), "has dtype"),
        (torch.zeros(4).to_sparse(), "is no dense tensor"),
        (torch.zeros(4, device="meta"), "is on meta, whose memory cannot be reached"),
    ]
    for buffer, words in cases:
        refused(
            lambda b=buffer: c.allreduce(b, F(16), nccl.SUM),
            f"rank {c.rank} of {n}: sendbuf {words}",
        )
        refused(lambda b=buffer: c.allreduce(F(4), b, nccl.SUM), f"recvbuf {words}")
        refused(lambda b=buffer: c.send(b, (c.rank + 1) % n), f"send on .* sendbuf {words}")
        refused(lambda b=buffer: c.recv(b, (c.rank + 1) % n), f"recv on .* recvbuf {words}")
    for buffer in (readonly, bytes(4), memoryview(readonly)):
        refused(lambda b=buffer: c.recv(b, (c.rank + 1) % n), "recvbuf is read-only")
    refused(lambda: c.allreduce(F(4), readonly, nccl.SUM), "recvbuf is read-only")


def wrong_ops(c: nccl.Communicator, n: int) -> None:
    for op in (0, 5, "SUM", None, torch.distributed.ReduceOp.SUM, [0]):
        words = "op must be an NcclRedOp or a CustomRedOp"
        refused(lambda o=op: c.allreduce(F(4), F(4), o), words)  # type: ignore[arg-type]
        refused(lambda o=op: c.reduce_scatter(F(n), F(1), o), words)  # type: ignore[arg-type]
    boolean = torch.zeros(4, dtype=torch.bool)
    refused(lambda: c.allreduce(boolean, boolean, nccl.AVG), "AVG has no meaning for bool")
    narrow = torch.zeros(4, dtype=torch.float8_e4m3fn)
    for op in nccl.NcclRedOp:
        error = refused(
            lambda o=op: c.allreduce(narrow, narrow, o), "float8_e4m3fn is not possible"
        )
        assert isinstance(error, nccl.NcclUnsupported)
        assert isinstance(error, NotImplementedError)
    refused(
        lambda: c.allreduce(F(4), F(4), nccl.SUM, stream=0), "a stream was given, but the buffers"
    )
    refused(lambda: c.send(F(4), (c.rank + 1) % n, stream=0), "a stream was given")


CHECKS = {
    check.__name__: check
    for check in (
        wrong_counts,
        remainders,
        wrong_types,
        wrong_roots,
        overlaps,
        wrong_buffers,
        wrong_ops,
    )
}


def run_check(rank: int, world_size: int, name: str) -> None:
    with connect(rank, world_size, name="tp") as comm:
        CHECKS[name](comm, world_size)
        out = F(3)
        comm.allreduce(np.ones(3), out, nccl.SUM)
        assert (out == world_size).all(), "the communicator suffered"


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("name", CHECKS)
def test_wrong_arguments(name: str, world_size: int) -> None:
    run_ranks(run_check, world_size, name=name)


def check_one_rank(rank: int, world_size: int) -> None:
    """What is in place on one rank is at element 0 of everything."""
    with connect(rank, world_size) as comm:
        overlaps(comm, 1)


def test_wrong_arguments_of_one_rank() -> None:
    run_ranks(check_one_rank, 1)


class OnGpu:
    """What Numba exports."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": (4,), "typestr": "<f4", "data": (1 << 40, False), "version": 3}


def test_torch_copies_no_array_of_another_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would, in silence, and the result would be in the copy."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "as_tensor", lambda obj, device: torch.ones(4))
    with pytest.raises(
        ValueError, match="is not on cpu, the current GPU; make its GPU the current"
    ):
        buffers.buffer_of(OnGpu(), True)


def check_cuda(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        words = "sendbuf is in CUDA memory, and this process sees no GPU"
        refused(lambda: comm.allreduce(OnGpu(), F(4), nccl.SUM), words)
    with connect(rank, world_size, device="cuda") as comm:
        assert comm.device == torch.device("cuda")
        words = "sendbuf is on device cpu, but communicator is on device cuda. Buffers must be on"
        refused(lambda: comm.allreduce(F(4), F(4), nccl.SUM), words)
    with connect(rank, world_size, device="cpu") as comm:
        comm.allreduce(F(4), F(4), nccl.SUM)


@pytest.mark.skipif(torch.cuda.is_available(), reason="its words are for a machine without a GPU")
def test_cuda_memory_is_refused_in_words() -> None:
    run_ranks(check_cuda, 2)


def test_the_errors_are_pickled() -> None:
    for kind in (nccl.NcclInvalid, nccl.NcclUnsupported):
        error = pickle.loads(pickle.dumps(kind("what and why")))
        assert type(error) is kind
        assert error.msg == str(error) == "what and why"
        assert repr(error) == f"<{kind.__name__}: what and why>"
    assert not issubclass(nccl.NcclInvalid, ValueError)
