"""The benchmarks run, compare their results, and write what they measured. No times are judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
    "all_to_all_4d_qkv",
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
    plain = {(op, name) for op in OPS[:-2] for name in ("fastvideo", "gloo", "fake")}
    names = ("fastvideo", "fastvideo+permutes", "gloo+permutes")
    assert measured == plain | {(op, name) for op in OPS[-2:] for name in names}
    assert all(0 < row["min_us"] <= row["median_us"] <= row["p99_us"] for row in rows)
    for op in OPS:
        assert f"{op} " in done.stdout
