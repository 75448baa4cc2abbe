"""Every example runs as its docstring says; the numbered ones are short."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NUMBERED = sorted(EXAMPLES.glob("[0-9]*.py"))


@pytest.mark.parametrize("example", NUMBERED, ids=lambda path: path.stem)
def test_example_runs(example: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(example)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, check=False, env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 1, done.stdout  # rank 0's word, and nothing else


@pytest.mark.parametrize("example", NUMBERED, ids=lambda path: path.stem)
def test_example_is_short(example: Path) -> None:
    assert len(example.read_text().splitlines()) < 60


def test_there_are_examples() -> None:
    assert len(NUMBERED) >= 4


def test_training_with_a_spread_sequence_equals_one_process() -> None:
    """Losses and gradients, eager and compiled; the example compares them itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "examples.sequence_parallel_training"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        check=False,
        cwd=EXAMPLES.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all gradients equal those of one process" in done.stdout
