"""Groups: subsets, many at once, threads, life after destroy."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from c10d import cases
from fresh import fresh_ranks
from harness import run_ranks
from rank_process import Control, open_descriptors


def check_subsets(rank: int, world_size: int) -> None:
    for members in ([0, 2], [1, 3], [3, 1, 0], [2], [0, 1, 2, 3]):
        group = dist.new_group(members)
        if rank not in members:
            continue
        tensor = torch.tensor([float(10**rank)])
        dist.all_reduce(tensor, group=group)
        assert tensor.item() == float(sum(10**member for member in members)), members
        gathered = [torch.empty(1, dtype=torch.int64) for _ in members]
        dist.all_gather(gathered, torch.tensor([rank]), group=group)
        # Torch sorts the members: ranks inside a group follow the global ones.
        assert [int(each) for each in gathered] == sorted(members)
        root = members[-1]
        data = torch.tensor([rank])
        dist.broadcast(data, src=root, group=group)  # src is a global rank
        assert int(data) == root


def test_groups_of_some_ranks() -> None:
    run_ranks(check_subsets, 4)


def check_interleaved(rank: int, world_size: int) -> None:
    """Different groups hold different calls in flight, begun and ended in different orders."""
    groups = [dist.new_group(list(range(world_size))) for _ in range(4)]
    for turn in range(20):
        tensors = [torch.full((1 + 9000 * index,), float(turn)) for index in range(4)]
        order = range(4) if rank % 2 == 0 else reversed(range(4))
        works = [dist.all_reduce(tensors[i], group=groups[i], async_op=True) for i in order]
        for work in works:
            work.wait()
        for tensor in tensors:
            assert (tensor == float(turn * world_size)).all()


@pytest.mark.parametrize("world_size", [2, 3])
def test_calls_of_several_groups_do_not_wait_for_each_other(world_size: int) -> None:
    run_ranks(check_interleaved, world_size)


def check_threads(rank: int, world_size: int) -> None:
    failures: list[str] = []

    def work(number: int, group: Any) -> None:
        try:
            for turn in range(60):
                tensor = torch.full((1 + number * 5000,), float(turn + number))
                dist.all_reduce(tensor, group=group)
                assert (tensor == float((turn + number) * world_size)).all(), (number, turn)
        except BaseException as error:
            failures.append(f"thread {number}: {error!r}")

    groups = [dist.new_group(list(range(world_size))) for _ in range(4)]
    threads = [threading.Thread(target=work, args=item) for item in enumerate(groups)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_thread_for_each_group(world_size: int) -> None:
    run_ranks(check_threads, world_size)


def threads_now() -> int:
    return len(os.listdir("/proc/self/task"))


def reinit(control: Control) -> None:
    counts: list[tuple[int, int]] = []
    for turn in range(20):
        control.init(again=f"/{turn}")
        for count in (1, 100_000):
            tensor = torch.full((count,), float(control.rank))
            dist.all_reduce(tensor)
            assert (tensor == 1.0).all()
            work = dist.all_reduce(tensor, async_op=True)
            work.wait()
        dist.destroy_process_group()
        counts.append((open_descriptors().total(), threads_now()))
    assert counts[-1] == counts[4], f"descriptors and threads after each round: {counts}"


def test_twenty_times_init_and_destroy_leaves_nothing() -> None:
    with fresh_ranks(reinit, 2) as ranks:
        for outcome in ranks.outcomes(within=60):
            assert not outcome.raised, outcome
            assert outcome.exitcode == 0, outcome


def check_thousand(rank: int, world_size: int) -> float:
    begin = time.monotonic()
    groups = []
    before = open_descriptors()
    for number in range(1000):
        group = dist.new_group([0, 1])
        tensor = torch.tensor([float(number + rank)])
        dist.all_reduce(tensor, group=group)
        assert tensor.item() == 2.0 * number + 1.0
        groups.append(group)
    assert open_descriptors() - before == {}, "a further group costs no descriptor"
    for number in (0, 1, 500, 999):  # the first ones are as good as the last
        tensor = torch.ones(300_000)
        dist.all_reduce(tensor, group=groups[number])
        assert (tensor == 2.0).all()
    return time.monotonic() - begin


def test_a_thousand_groups_at_once() -> None:
    seconds = run_ranks(check_thousand, 2, timeout=100)
    assert max(seconds) < 60, "a group costs more than 60 ms"


def check_use_after_destroy(rank: int, world_size: int) -> list[str]:
    group = dist.new_group(list(range(world_size)))
    handle = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
    dist.all_reduce(torch.ones(1), group=group)
    dist.destroy_process_group(group)
    texts = []
    try:
        dist.all_reduce(torch.ones(1), group=group)
    except (ValueError, RuntimeError) as error:
        texts.append(f"{type(error).__name__}: {error}")
    dist.barrier()
    dist.destroy_process_group()
    try:
        handle.barrier().wait()
    except RuntimeError as error:
        texts.append(f"{type(error).__name__}: {error}")
    return texts


def test_a_destroyed_group_says_so() -> None:
    for texts in run_ranks(check_use_after_destroy, 2):
        assert len(texts) == 2, texts
        assert texts[0].startswith("ValueError: "), texts  # torch's own: the group is unknown to it
        assert "DistBackendError" in texts[1], texts
        assert "was destroyed; create it again" in texts[1], texts


def check_made_in_turn(rank: int, world_size: int) -> None:
    """Groups with other sizes and orders one after the other keep apart."""
    for turn in range(10):
        pair = dist.new_group([turn % 3, (turn + 1) % 3])
        everyone = dist.new_group([0, 1, 2])
        tensor = torch.tensor([1.0])
        if rank in (turn % 3, (turn + 1) % 3):
            dist.all_reduce(tensor, group=pair)
            assert tensor.item() == 2.0
        dist.all_reduce(tensor, group=everyone)
        assert tensor.item() == 5.0
        dist.destroy_process_group(everyone)


def test_groups_made_and_destroyed_in_turn() -> None:
    run_ranks(check_made_in_turn, 3)


def check_world_of_one(rank: int, world_size: int) -> None:
    alone = dist.new_group([rank], use_local_synchronization=True)
    tensor = cases.make(rank, 1000, torch.float32)
    before = tensor.clone()
    dist.all_reduce(tensor, group=alone)
    cases.same_bits(tensor, before, "alone")


def test_each_rank_alone_in_a_group() -> None:
    run_ranks(check_world_of_one, 3)
