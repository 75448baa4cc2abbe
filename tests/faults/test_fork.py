"""fork after init: the parent is none the worse, the child is told that it has no group."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist

from harness import run_ranks


def in_child(body: Callable[[], None]) -> tuple[str, int]:
    """Runs `body` in a forked child; returns what it raised, and the child's exit code."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            body()
            said = ""
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    return said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def use_group() -> None:
    dist.all_reduce(torch.ones(3))


def use_group_async() -> None:
    dist.all_reduce(torch.ones(3), async_op=True).wait()


def send() -> None:
    dist.isend(torch.ones(3), 1 - dist.get_rank()).wait()


USES = {"use": use_group, "async": use_group_async, "send": send}


def check_use(rank: int, world_size: int, use: str) -> tuple[str, int]:
    dist.all_reduce(torch.ones(100_000))
    dist.all_reduce(torch.ones(3), async_op=True).wait()  # the group's thread exists
    result = in_child(USES[use])
    tensor = torch.ones(100_000)
    dist.all_reduce(tensor)
    assert (tensor == float(world_size)).all(), "the parent's group was harmed"
    return result


@pytest.mark.parametrize("use", USES)
def test_a_child_that_uses_the_group_is_told(use: str) -> None:
    for said, code in run_ranks(check_use, 2, use=use):
        assert said.startswith("DistBackendError"), (said, code)
        assert "fork" in said
        assert code == 0


def check_harmless(rank: int, world_size: int) -> None:
    dist.barrier()
    for body in (lambda: None, dist.destroy_process_group):
        said, code = in_child(body)
        assert (said, code) == ("", 0)
        tensor = torch.ones(100_000)
        dist.all_reduce(tensor)
        assert (tensor == float(world_size)).all(), "the parent's group was harmed"


def test_a_child_may_exit_and_may_destroy_its_copy() -> None:
    run_ranks(check_harmless, 2)
