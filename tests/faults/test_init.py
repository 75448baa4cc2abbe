"""Faults while a group is made."""

from __future__ import annotations

import datetime
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist

from faults import expect
from fresh import fresh_ranks
from rank_process import Control

ABSENT = 1
NOT_COME = rf"these ranks had not come: {ABSENT}$"


def come_or_not(control: Control) -> None:
    if control.rank == ABSENT:
        control.reached("outside")
        control.wait_for("the end")
        return
    control.reached("joining")
    control.init(timeout_s=3)


def test_a_rank_that_does_not_come_is_named() -> None:
    with fresh_ranks(come_or_not, 3) as ranks:
        joining = ranks.wait_until("joining", [0, 2])
        for outcome, begun in zip(ranks.outcomes([0, 2]), joining, strict=True):
            expect.broken(outcome, NOT_COME, begun["at"], 3.0 + expect.BOUND_S)
        ranks.tell(ABSENT, "the end")


def join_and_use(control: Control) -> None:
    control.reached("joining")
    control.init(timeout_s=4)
    while True:
        dist.all_reduce(torch.ones(10))


@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 8, 16, 32, 64])
def test_a_rank_killed_at_any_moment_of_init(milliseconds: int) -> None:
    """The moments are swept: whichever it hits, the others end, with an error that names it."""
    with fresh_ranks(join_and_use, 3) as ranks:
        ranks.wait_until("joining")
        time.sleep(milliseconds / 1000)
        at = ranks.kill(ABSENT)
        for outcome in ranks.outcomes([0, 2]):
            expect.broken(outcome, rf"rank {ABSENT}\b|{NOT_COME}", at, 4.0 + expect.BOUND_S)


def two_names(control: Control) -> str:
    """The ranks give different sizes for one group."""
    try:
        dist.init_process_group(
            control.place.backend,
            store=control.place.connect(control.prefix),
            rank=control.rank,
            world_size=2 if control.rank == 0 else 3,
            timeout=datetime.timedelta(seconds=20),
        )
    except dist.DistBackendError as error:
        return str(error)
    return ""


def test_different_world_sizes_are_told() -> None:
    with fresh_ranks(two_names, 2) as ranks:
        begun = time.monotonic()
        for outcome in ranks.outcomes():
            assert outcome.report is not None
            # Rank 1 waits for a rank 2 that never comes, and hears from rank 0 before its deadline.
            assert "believes to be rank 1 of 3" in outcome.report.value, outcome
            assert outcome.report.at - begun < 10.0, outcome


STORE_SERVER = """
import sys, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


def use_without_store(control: Control) -> str:
    """A store of the ranks' own, which rank 0 keeps in a process that ends after init."""
    if control.rank == 0:
        server = subprocess.Popen(
            [sys.executable, "-c", STORE_SERVER], stdout=subprocess.PIPE, stdin=subprocess.PIPE
        )
        assert server.stdout is not None
        control.place.connect(control.prefix).set("port", server.stdout.readline().strip())
    port = int(control.place.connect(control.prefix).get("port"))
    dist.init_process_group(
        control.place.backend,
        store=dist.TCPStore("127.0.0.1", port, timeout=datetime.timedelta(seconds=5)),
        rank=control.rank,
        world_size=control.world_size,
        timeout=datetime.timedelta(seconds=5),
    )
    dist.barrier()
    if control.rank == 0:
        server.kill()
        server.wait()
    dist.barrier()  # the store is gone for everybody
    tensor = torch.ones(300_000)
    dist.all_reduce(tensor)
    assert (tensor == float(control.world_size)).all()
    try:
        dist.new_group([0, 1])
    except dist.DistError as error:
        return str(error)
    raise AssertionError("a group was made without a store")


def test_a_group_lives_on_without_its_store() -> None:
    with fresh_ranks(use_without_store, 2, allow_orphans=True) as ranks:
        for outcome in ranks.outcomes(within=60):
            assert not outcome.raised, outcome
            assert outcome.exitcode == 0, outcome
