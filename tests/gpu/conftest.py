"""Without a GPU these tests are skipped with the reason; where one was promised, they fail."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist


def missing() -> str | None:
    """Why there is nothing to test on."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__}, CUDA {torch.version.cuda}, finds no GPU or no driver"
    if not dist.is_nccl_available():
        return f"torch {torch.__version__} was built without NCCL"
    return None


@pytest.fixture(autouse=True)
def gpu() -> None:
    reason = missing()
    if reason is None:
        return
    if os.environ.get("FASTVIDEO_DIST_REQUIRE_GPU", "0") == "1":
        pytest.fail(f"a GPU was promised (FASTVIDEO_DIST_REQUIRE_GPU=1), but {reason}")
    pytest.skip(reason)
