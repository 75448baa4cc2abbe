"""A GPU that was promised and is not there fails the tests that need it; else they are skipped."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
ONE_TEST = "tests/gpu/test_teardown.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("promise", "code", "said"), [("1", 1, "was promised"), ("0", 0, "SKIP")])
def test_a_missing_gpu(promise: str, code: int, said: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "addopts=-ra", "-p", "no:cacheprovider", ONE_TEST],
        cwd=ROOT,
        env={**os.environ, "FASTVIDEO_DIST_REQUIRE_GPU": promise},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stdout
    assert said in ended.stdout
    assert "finds no GPU" in ended.stdout or "without CUDA" in ended.stdout
