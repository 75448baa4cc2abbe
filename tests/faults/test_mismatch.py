"""Ranks that disagree: all raise, the minority is named, nothing is written, the process lives."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from fastvideo_dist.ops import all_to_all_4d
from faults import expect
from harness import run_ranks

W, ODD = 3, 2  # of three ranks the last one differs
MARK = -7.0

Call = Callable[[bool, Tensor], Any]


def marked(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((count,), MARK, dtype=dtype)


def uneven(odd: bool, output: Tensor) -> None:
    # The odd rank gives one row less to rank 0 than rank 0 expects of it.
    given = [1, 2, 2] if odd else [2, 2, 2]
    dist.all_to_all_single(output, torch.ones(sum(given)), [2, 2, 2], given)


def even_and_uneven(odd: bool, output: Tensor) -> None:
    splits = [2, 2, 2] if odd else None
    dist.all_to_all_single(output, torch.ones(6), splits, splits)


# What the odd rank does otherwise; `output` has 6 marked elements. The two words stand in the text.
FIELDS: dict[str, tuple[Call, str, str]] = {
    "operation": (
        lambda odd, out: dist.barrier() if odd else dist.all_reduce(out),
        "barrier",
        r"all_reduce\(SUM, float32 x 6\)",
    ),
    "reduce op": (
        lambda odd, out: dist.all_reduce(out, dist.ReduceOp.MAX if odd else dist.ReduceOp.SUM),
        r"all_reduce\(MAX",
        r"all_reduce\(SUM",
    ),
    "premul factor": (
        lambda odd, out: dist.all_reduce(out, dist._make_nccl_premul_sum(0.5 if odd else 0.25)),
        "0.5",
        "0.25",
    ),
    "dtype": (
        lambda odd, out: dist.all_reduce(out.view(torch.int32) if odd else out),
        "int32 x 6",
        "float32 x 6",
    ),
    "count": (
        lambda odd, out: dist.all_reduce(out[:5] if odd else out),
        "float32 x 5",
        "float32 x 6",
    ),
    "count of zero": (
        lambda odd, out: dist.all_reduce(out[:0] if odd else out),
        "float32 x 0",
        "float32 x 6",
    ),
    "root of broadcast": (
        lambda odd, out: dist.broadcast(out, 1 if odd else 0),
        "root 1",
        "root 0",
    ),
    "root of reduce": (
        lambda odd, out: dist.reduce(out, 1 if odd else 0),
        "root 1",
        "root 0",
    ),
    "count of all_gather": (
        lambda odd, out: dist.all_gather_into_tensor(
            out[:3] if odd else out, torch.ones(1 if odd else 2)
        ),
        "float32 x 1",
        "float32 x 2",
    ),
    "count of reduce_scatter": (
        lambda odd, out: dist.reduce_scatter_tensor(
            out[:1] if odd else out[:2], torch.ones(3 if odd else 6)
        ),
        "float32 x 1",
        "float32 x 2",
    ),
    "dtype of all_to_all": (
        lambda odd, out: dist.all_to_all_single(
            out.view(torch.int32) if odd else out,
            torch.ones(6, dtype=torch.int32 if odd else torch.float32),
        ),
        "int32 x 2",
        "float32 x 2",
    ),
    "splits of all_to_all": (uneven, rf"rank {ODD}", r"\b1\b.*\b2\b|\b2\b.*\b1\b|4 bytes|8 bytes"),
    "even against uneven": (even_and_uneven, r"uneven", r"float32 x 2"),
    "dimensions of all_to_all_4d": (
        lambda odd, out: all_to_all_4d(torch.ones(1, 6, 6, 2), *((1, 2) if odd else (2, 1))),
        "layout",
        "float32 x 24",
    ),
    "shape of all_to_all_4d": (
        lambda odd, out: all_to_all_4d(torch.ones((1, 6, 6, 2) if odd else (1, 2, 6, 6)), 2, 1),
        "layout",
        "float32 x 24",
    ),
    "large count": (
        lambda odd, out: dist.all_reduce(torch.ones(1_000_001 if odd else 1_000_000)),
        "float32 x 1000001",
        "float32 x 1000000",
    ),
}


def disagree(rank: int, world_size: int, field: str) -> dict[str, Any]:
    call = FIELDS[field][0]
    output = marked(6)
    dist.barrier()
    begin = time.monotonic()
    try:
        call(rank == ODD, output)
        text = ""
    except dist.DistBackendError as error:
        text = str(error)
    seconds = time.monotonic() - begin
    try:
        dist.barrier()
        later = ""
    except dist.DistBackendError as error:
        later = str(error)
    return {"text": text, "seconds": seconds, "later": later, "output": output}


@pytest.mark.parametrize("field", FIELDS)
def test_a_disagreement(field: str) -> None:
    _, odd, others = FIELDS[field]
    for rank, said in enumerate(run_ranks(disagree, W, field=field)):
        assert said["text"], f"rank {rank} did not raise"
        for pattern in (rf"rank {ODD}\b", odd, others, "Group is now unusable"):
            assert re.search(pattern, said["text"]), (
                f"rank {rank}: no {pattern!r} in {said['text']}"
            )
        assert said["seconds"] < expect.BOUND_S
        assert torch.equal(said["output"], marked(6)), f"rank {rank}: the output was written"
        assert said["later"], f"rank {rank}: the broken group let a call through"


def skip_one(rank: int, world_size: int) -> str:
    try:
        if rank != ODD:
            dist.all_reduce(torch.ones(8))
        dist.barrier()
        dist.barrier()
    except dist.DistBackendError as error:
        return str(error)
    return ""


def test_a_skipped_call_is_found_at_the_first_difference() -> None:
    for rank, text in enumerate(run_ranks(skip_one, W)):
        assert re.search(rf"rank {ODD} calls barrier", text), f"rank {rank}: {text}"
        assert re.search(r"ranks 0, 1 call all_reduce\(SUM, float32 x 8\)", text), f"{rank}: {text}"


def message(rank: int, world_size: int, sent: int, expected: int, dtype: str) -> dict[str, Any]:
    """Rank 0 sends, rank 1 expects something else; then both try a barrier."""
    texts = []
    received = marked(expected)
    for call in (
        lambda: (
            dist.send(torch.ones(sent, dtype=getattr(torch, dtype)), 1)
            if rank == 0
            else dist.recv(received, 0)
        ),
        dist.barrier,
    ):
        try:
            call()
        except dist.DistBackendError as error:
            texts.append(str(error))
    return {"texts": texts, "untouched": torch.equal(received, marked(expected))}


@pytest.mark.parametrize(
    ("sent", "expected", "dtype"),
    [
        (4, 2, "float32"),
        (2, 4, "float32"),
        (4, 4, "int32"),
        (4, 2, "float64"),
        (2_000_000, 5, "float32"),
    ],
)
def test_a_message_of_another_size_or_dtype(sent: int, expected: int, dtype: str) -> None:
    sender, receiver = run_ranks(message, 2, sent=sent, expected=expected, dtype=dtype)
    assert len(receiver["texts"]) == 2, receiver
    assert receiver["untouched"], "the receiver's tensor was written"
    assert re.search(r"recv\(float32 x \d+.*rank 0", receiver["texts"][0]), receiver
    # A short message may be gone before the receiver looks; then the sender's next call tells.
    assert sender["texts"], "the sender learnt nothing"
    if sent > 1_000_000:
        assert len(sender["texts"]) == 2, sender
