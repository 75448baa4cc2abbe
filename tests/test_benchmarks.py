"""The benchmarks run, compare their results, and write what they measured. No times are judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
OPS = (
    "all_reduce",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "broadcast",
    "isend_recv",
    "barrier",
    "all_to_all_4d",
    "all_to_all_4d_back",
    "all_to_all_4d_qkv",
    "all_to_all_4d_qkv_joined",
)


def test_one_tiny_size(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", f"--ops={','.join(OPS)}", "--sizes=4K"]
    command += ["--ranks=2", "--rounds=1", "--batch-ms=1", f"--json={tmp_path / 'out.json'}"]
    done = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr

    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    measured = {(row["op"], row["backend"]) for row in rows}
    plain = {(op, name) for op in OPS[:-4] for name in ("fastvideo", "gloo", "fake")}
    names = ("fastvideo", "fastvideo+permutes", "gloo+permutes")
    assert measured == plain | {(op, name) for op in OPS[-4:] for name in names}
    assert all(0 < row["min_us"] <= row["median_us"] <= row["p99_us"] for row in rows)
    for op in OPS:
        assert f"{op} " in done.stdout


def test_the_exchange_on_a_gpu_says_that_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "-m", "benchmarks.gpu_exchange"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "benchmarks.gpu_exchange needs a GPU: torch.cuda.is_available() is False" in done.stderr


@pytest.mark.parametrize("world", [2, 4])
def test_both_exchanges_on_a_gpu_mean_the_same(world: int) -> None:
    """On the CPU, with torch's copies in place of the kernel's."""
    # Not at the top: it is no package for who runs these tests from another folder.
    from benchmarks.gpu_exchange import Ours, Push, transposing  # noqa: PLC0415

    def copy(sources: list[Tensor], targets: list[Tensor]) -> None:
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)

    xs = [torch.randn(1, 6, 2 * world, 8) for _ in range(3)]
    before = [x.clone() for x in xs]
    ours = Ours(xs, world, copy)
    for mine, theirs in zip(ours.exchange(), transposing(xs, world, Tensor.clone), strict=True):
        assert torch.equal(mine, theirs)
    push = Push(xs, world, copy)
    push.push()
    for peer, mine in enumerate(push.results):
        for result, x in zip(mine, xs, strict=True):
            assert torch.equal(result[:, :6], x.chunk(world, dim=2)[peer])
    for x in xs:
        x.zero_()
    ours.unpack()
    assert all(torch.equal(x, was) for x, was in zip(xs, before, strict=True))
