"""Bad input: a clear exception before anything is sent, and a group as good as before.

Every case runs on all ranks at once and is followed by an all_reduce that must give the right
number; a case whose error depends on the other ranks belongs to tests/faults.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from harness import run_ranks

W = 3  # world size of all cases

Case = tuple[Callable[[int], object], tuple[type[BaseException], ...], str]


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def world() -> dist.ProcessGroup:
    return dist.distributed_c10d._get_default_group()


def backend() -> dist.Backend:
    return world()._get_backend(torch.device("cpu"))


def overlapping() -> list[Tensor]:
    storage = ones(8)
    return [storage[:4], storage[2:6], storage[4:]]


def lists(rank: int, holder: int) -> list[Tensor] | None:
    return [ones(4) for _ in range(W)] if rank == holder else None


VALUE = (ValueError,)
UNSUPPORTED = (NotImplementedError,)
TYPE = (TypeError, ValueError)

REDUCTIONS: dict[str, Case] = {
    "BAND of floats": (lambda r: dist.all_reduce(ones(4), dist.ReduceOp.BAND), VALUE, "BAND"),
    "BXOR of complex": (
        lambda r: dist.all_reduce(ones(4, dtype=torch.complex64), dist.ReduceOp.BXOR),
        VALUE,
        "BXOR",
    ),
    "MAX of complex": (
        lambda r: dist.all_reduce(ones(4, dtype=torch.complex64), dist.ReduceOp.MAX),
        VALUE,
        "complex",
    ),
    "AVG of bool": (
        lambda r: dist.all_reduce(ones(4, dtype=torch.bool), dist.ReduceOp.AVG),
        VALUE,
        "AVG.*bool",
    ),
    "SUM of float8": (
        lambda r: dist.all_reduce(ones(4).to(torch.float8_e4m3fn)),
        UNSUPPORTED,
        "float8_e4m3fn",
    ),
    "PREMUL_SUM of integers": (
        lambda r: dist.all_reduce(ones(4, dtype=torch.int32), dist._make_nccl_premul_sum(0.5)),
        VALUE,
        "PREMUL_SUM.*int32",
    ),
    "a sum into an expanded tensor": (
        lambda r: dist.all_reduce(ones(1).expand(4)),
        VALUE,
        "overlap|several elements",
    ),
    "a sparse tensor": (
        lambda r: dist.all_reduce(ones(4).to_sparse()),
        TYPE,
        "sparse|dense|layout",
    ),
    "a tensor without memory, at the backend": (
        lambda r: backend().allreduce([torch.empty(4, device="meta")]),
        TYPE,
        "meta",
    ),
    "reduce to a rank that is not there": (lambda r: dist.reduce(ones(4), group_dst=W), VALUE, "3"),
    "reduce_scatter into a wrong size": (
        lambda r: dist.reduce_scatter_tensor(ones(5), ones(W * 4)),
        VALUE,
        r"5.*12|12.*5",
    ),
    "reduce_scatter of another dtype": (
        lambda r: dist.reduce_scatter_tensor(ones(4), ones(W * 4, dtype=torch.float64)),
        TYPE,
        "(?i)dtype|float64",
    ),
    "reduce_scatter of a short list": (
        lambda r: dist.reduce_scatter(ones(4), [ones(4)] * (W - 1)),
        VALUE,
        "2",
    ),
    "reduce_scatter whose own part is of another size": (
        lambda r: dist.reduce_scatter(ones(4), [ones(5 if i == r else 4) for i in range(W)]),
        VALUE,
        "5",
    ),
}

GATHERS: dict[str, Case] = {
    "a short list": (lambda r: dist.all_gather([ones(4)] * (W - 1), ones(4)), VALUE, "2"),
    "an own output of another size": (
        lambda r: dist.all_gather([ones(5 if i == r else 4) for i in range(W)], ones(4)),
        VALUE,
        "5",
    ),
    "an output of another dtype": (
        lambda r: dist.all_gather([ones(4, dtype=torch.float64) for _ in range(W)], ones(4)),
        TYPE,
        "(?i)dtype|float64",
    ),
    "one output twice": (
        lambda r: dist.all_gather([ones(4)] * W, ones(4)),
        VALUE,
        "overlap|share memory",
    ),
    "outputs that overlap": (
        lambda r: dist.all_gather(overlapping(), ones(4)),
        VALUE,
        "overlap|share memory",
    ),
    "an output too small": (
        lambda r: dist.all_gather_into_tensor(ones(W * 4 - 1), ones(4)),
        VALUE,
        r"11|12",
    ),
    "a gather without a list on the root": (
        lambda r: world().gather([], [ones(4)], _gather_options(r)),
        VALUE,
        "(?i)root|list|output",
    ),
    "a gather with a list elsewhere": (
        lambda r: dist.gather(ones(4), [ones(4) for _ in range(W)], dst=(r + 1) % W),
        VALUE,
        "(?i)dst|destination|root",
    ),
    "a scatter with a list elsewhere": (
        lambda r: world().scatter(
            [ones(4)], [[ones(4) for _ in range(W)]], _scatter_options((r + 1) % W)
        ),
        VALUE,
        "(?i)root|list|input",
    ),
}

EXCHANGES: dict[str, Case] = {
    "rows that do not divide": (
        lambda r: dist.all_to_all_single(ones(4), ones(4)),
        VALUE,
        "4.*3|divi",
    ),
    "splits that do not add up": (
        lambda r: dist.all_to_all_single(ones(6), ones(6), [2, 2, 2], [2, 2, 1]),
        VALUE,
        "5.*6|6.*5|(?i:sum|add)",
    ),
    "a negative split": (
        lambda r: dist.all_to_all_single(ones(6), ones(6), [2, 2, 2], [7, -3, 2]),
        VALUE,
        "-3|negative",
    ),
    "splits for too few ranks": (
        lambda r: dist.all_to_all_single(ones(6), ones(6), [3, 3], [3, 3]),
        VALUE,
        "2.*3|3.*2",
    ),
    "a list of another dtype": (
        lambda r: dist.all_to_all([ones(4) for _ in range(W)], [ones(4).double()] * W),
        TYPE,
        "(?i)dtype|float64",
    ),
    "a broadcast from a rank that is not there": (
        lambda r: dist.broadcast(ones(4), group_src=W),
        VALUE,
        "3",
    ),
    "a broadcast from a negative rank": (
        lambda r: dist.broadcast(ones(4), group_src=-1),
        VALUE,
        "-1",
    ),
}

MESSAGES: dict[str, Case] = {
    "send to oneself": (lambda r: dist.send(ones(4), r), VALUE, "(?i)self|same"),
    "send to oneself, at the backend": (
        lambda r: world().send([ones(4)], r, 0).wait(),
        VALUE,
        "(?i)self|same",
    ),
    "recv from oneself, at the backend": (
        lambda r: world().recv([ones(4)], r, 0).wait(),
        VALUE,
        "(?i)self|same",
    ),
    "send to a rank that is not there": (
        lambda r: world().send([ones(4)], W, 0).wait(),
        VALUE,
        "3",
    ),
    "a negative tag": (lambda r: dist.send(ones(4), (r + 1) % W, tag=-2), VALUE, "-2"),
    "recv with a negative tag": (lambda r: dist.recv(ones(4), (r + 1) % W, tag=-2), VALUE, "-2"),
    "recv into an expanded tensor": (
        lambda r: dist.recv(ones(1).expand(4), (r + 1) % W),
        VALUE,
        "overlap|several elements",
    ),
}


def _gather_options(root: int) -> dist.GatherOptions:
    options = dist.GatherOptions()
    options.rootRank = root
    return options


def _scatter_options(root: int) -> dist.ScatterOptions:
    options = dist.ScatterOptions()
    options.rootRank = root
    return options


TABLES = {
    "reductions": REDUCTIONS,
    "gathers": GATHERS,
    "exchanges": EXCHANGES,
    "messages": MESSAGES,
}


def check(rank: int, world_size: int, table: str) -> list[str]:
    """Returns what went otherwise than the table says, all of it at once."""
    wrong = []
    for name, (call, types, pattern) in TABLES[table].items():
        try:
            call(rank)
            wrong.append(f"{name}: no exception")
        except BaseException as error:
            if not isinstance(error, types):
                wrong.append(f"{name}: {type(error).__name__}: {error}")
            elif not re.search(pattern, str(error)):
                wrong.append(f"{name}: the message does not match {pattern!r}: {error}")
        tensor = ones(4)
        dist.all_reduce(tensor)
        if not (tensor == float(world_size)).all():
            wrong.append(f"{name}: the group is not as good as before: {tensor}")
    return wrong


@pytest.mark.parametrize("table", TABLES)
def test_bad_input(table: str) -> None:
    for rank, wrong in enumerate(run_ranks(check, W, table=table)):
        assert not wrong, f"rank {rank}:\n" + "\n".join(wrong)


def check_traced_is_refused(rank: int, world_size: int) -> None:
    """A tensor that is traced has no memory: every call says so before anything is sent."""
    backend = world()._get_backend(torch.device("cuda"))
    with FakeTensorMode():  # a tensor that is on a GPU as far as anybody can ask
        x = torch.empty(world_size, device="cuda")
    parts = [x] * world_size
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: backend.allreduce([x]),
        "broadcast": lambda: backend.broadcast([x]),
        "reduce": lambda: backend.reduce(x, root=0),
        "all_gather": lambda: backend.allgather([parts], [x]),
        "reduce_scatter": lambda: backend.reduce_scatter([x], [parts]),
        "gather": lambda: backend.gather(parts if rank == 0 else [], x, root=0),
        "scatter": lambda: backend.scatter(x, parts if rank == 0 else [], root=0),
        "all_to_all": lambda: backend.alltoall_base(x, x, [], []),
        "send": lambda: backend.send([x], 1 - rank, 0),
        "recv": lambda: backend.recv([x], 1 - rank, 0),
    }
    for call in calls.values():
        with pytest.raises(TypeError, match="has no memory"):
            call()
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    assert (tensor == float(world_size)).all(), "the group is as good as before"


def test_traced_tensors_are_refused_in_words() -> None:
    run_ranks(check_traced_is_refused, 2)
