from __future__ import annotations

import pytest

from harness import run_ranks
from layer import user_script


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_user_script_runs(world_size: int) -> None:
    assert run_ranks(user_script.main, world_size) == list(range(world_size))
