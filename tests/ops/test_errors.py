"""Wrong arguments of every op: a ValueError with the numbers, eager and traced, and a group that
goes on."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from c10d import cases
from fastvideo_dist import ops
from harness import run_ranks

WORLD = 2
Call = Callable[[Tensor], object]
X = (2, 3, 4, 5)

ERRORS: dict[str, tuple[Call, str]] = {
    "an unknown reduction": (lambda x: ops.all_reduce(x, "mean"), "mean"),
    "a reduction in capitals": (lambda x: ops.reduce_scatter(x, 0, "SUM"), "SUM"),
    "no such root": (lambda x: ops.broadcast(x, 2), r"2.*0 to 1"),
    "a negative root": (lambda x: ops.reduce(x, -1), r"-1.*0 to 1"),
    "no such dimension": (lambda x: ops.all_gather(x, 4), r"dim is 4.*4 dimensions"),
    "nor that one": (lambda x: ops.shard(x, -5), r"-5"),
    "no dimension at all": (lambda x: ops.all_gather(x[0, 0, 0, 0]), "0 dimensions"),
    "too many sizes": (lambda x: ops.all_gather(x, 0, sizes=[2, 2, 2]), "3 numbers for 2 ranks"),
    "sizes of somebody else": (lambda x: ops.all_gather(x, 0, sizes=[3, 3]), r"\b3\b.*\b2\b"),
    "sizes that add up to less": (lambda x: ops.reduce_scatter(x, 1, sizes=[1, 1]), r"2.*3"),
    "sizes that exceed": (lambda x: ops.shard(x, 1, sizes=[2, 2]), "3"),
    "negative sizes": (lambda x: ops.all_to_all_4d(x, scatter_sizes=[5, -1]), "-1"),
    "gather sizes of somebody else": (lambda x: ops.all_to_all_4d(x, gather_sizes=[4, 4]), "4"),
    "an empty list": (lambda x: ops.all_to_all_4d([]), "no tensor"),
    "two dtypes in a list": (lambda x: ops.all_to_all_4d([x, x.double()]), "float64"),
    "lists of sizes that do not fit": (
        lambda x: ops.all_to_all_4d([x, x], gather_sizes=[[3, 3]]),
        "1 lists of sizes for 2",
    ),
    "three dimensions in a list": (lambda x: ops.all_to_all_4d([x, x[0]]), "4 dimensions"),
    "a wrong rank": (
        lambda x: torch.ops.fastvideo_dist.all_gather(x, 0, None, "0", 2, 1 - dist.get_rank()),
        "group_rank",
    ),
    "a wrong size": (lambda x: torch.ops.fastvideo_dist.all_reduce(x, "sum", "0", 3), r"3.*2"),
    "no such group": (
        lambda x: torch.ops.fastvideo_dist.all_reduce(x, "sum", "no such", 2),
        "no such",
    ),
    "a group this rank is not in": (
        lambda x: ops.all_reduce(x, group=dist.GroupMember.NON_GROUP_MEMBER),  # type: ignore[arg-type]
        "not in the group",
    ),
}

NO_GROUP = ("no such group", "a group this rank is not in")

# What a compiler finds without a group, when it traces the call.
TRACED = [name for name in ERRORS if "wrong" not in name and "group" not in name]
TRACED.remove("two dtypes in a list")
TRACED.remove("gather sizes of somebody else")


def check_errors(rank: int, world_size: int) -> list[str]:
    wrong = []
    x = cases.make(rank, X, torch.float32)
    for name, (call, pattern) in ERRORS.items():
        try:
            call(x)
            wrong.append(f"{name}: no exception")
        except ValueError as error:
            if not re.search(pattern, str(error)):
                wrong.append(f"{name}: the message does not match {pattern!r}: {error}")
            if name not in NO_GROUP and f'on group "0", rank {rank}: ' not in str(error):
                wrong.append(f"{name}: who and where is not said: {error}")
        except BaseException as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
        if float(ops.all_reduce(torch.ones(1))) != world_size:
            wrong.append(f"{name}: the group is not as good as before")
    return wrong


def test_errors() -> None:
    for rank, wrong in enumerate(run_ranks(check_errors, WORLD)):
        assert not wrong, f"rank {rank}:\n" + "\n".join(wrong)


def check_traced(rank: int, world_size: int) -> list[str]:
    wrong = []
    with torch._subclasses.FakeTensorMode():
        x = torch.empty(X)
        for name in TRACED:
            call, pattern = ERRORS[name]
            try:
                call(x)
                wrong.append(f"{name}: no exception")
            except ValueError as error:
                if not re.search(pattern, str(error)):
                    wrong.append(f"{name}: the message does not match {pattern!r}: {error}")
    return wrong


def test_a_compiler_finds_the_same() -> None:
    for rank, wrong in enumerate(run_ranks(check_traced, WORLD)):
        assert not wrong, f"rank {rank}:\n" + "\n".join(wrong)


def check_no_gradient(rank: int, world_size: int) -> None:
    for op in ("min", "max", "product"):
        for call in (ops.all_reduce, ops.reduce_scatter, ops.reduce):
            x = cases.make(rank, 4, torch.float32).requires_grad_()
            arguments = {"op": op}
            y = call(x, **arguments)  # type: ignore[operator]
            with pytest.raises(NotImplementedError, match=f'"{op}" has no gradient'):
                y.sum().backward()
            with (
                forward_ad.dual_level(),
                pytest.raises(NotImplementedError, match=f'"{op}" has no gradient or tangent'),
            ):
                call(forward_ad.make_dual(x.detach(), torch.ones(4)), **arguments)  # type: ignore[operator]
    x = cases.make(rank, 4, torch.float32).requires_grad_()
    with torch.no_grad():
        assert not ops.all_reduce(x, "max").requires_grad
    with torch.inference_mode():
        ops.all_reduce(torch.ones(3))


def test_reductions_without_a_gradient_say_so() -> None:
    run_ranks(check_no_gradient, WORLD)


def check_unsupported(rank: int, world_size: int) -> None:
    where = f'on group "0", rank {rank}'
    for call, kind, pattern in (
        (
            lambda: ops.all_reduce(torch.ones(2, dtype=torch.complex64), "max"),
            ValueError,
            f"{where}.*MAX.*complex64",
        ),
        (
            lambda: ops.reduce_scatter(torch.ones(2).to(torch.float8_e5m2)),
            NotImplementedError,
            f"{where}.*float8",
        ),
        (lambda: ops.broadcast(torch.ones(2, 2).to_sparse()), NotImplementedError, "Sparse"),
    ):
        with pytest.raises(kind, match=pattern):
            call()
    assert float(ops.all_reduce(torch.ones(1))) == world_size


def test_what_cannot_be_reduced_or_sent() -> None:
    run_ranks(check_unsupported, WORLD)


def check_mismatch(rank: int, world_size: int, what: str) -> str:
    """Ranks that disagree: found out, not computed."""
    shape = (1, 4, 4, 2)
    x = torch.zeros(shape)
    try:
        if what == "lengths":
            ops.all_to_all_4d(torch.zeros(1, 4 + rank, 4, 2))
        elif what == "splits":
            ops.all_to_all_4d(x, scatter_sizes=[1, 3] if rank == 0 else [3, 1])
        elif what == "number of tensors":
            ops.all_to_all_4d([x] * (1 + rank))
        elif what == "reduction":
            ops.all_reduce(x, "sum" if rank == 0 else "avg")
        else:
            ops.all_gather(x, sizes=[1, 2] if rank == 0 else None)
    except dist.DistBackendError as error:
        return str(error)
    return "no exception"


def test_ranks_that_disagree_are_told() -> None:
    for what in ("lengths", "splits", "number of tensors", "reduction", "sizes or none"):
        texts = run_ranks(check_mismatch, WORLD, what=what)
        for text in texts:
            assert "disagree" in text or "mismatch" in text.lower(), (what, texts)
