"""async_op: works, futures and the order of calls."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from c10d import cases
from harness import run_ranks


def every_call(world_size: int, count: int) -> dict[str, Callable[[], Any]]:
    """Each collective begun asynchronously; the work is returned."""
    one = torch.ones(count)
    many = torch.ones(world_size * count)
    parts = [torch.ones(count) for _ in range(world_size)]
    first = dist.get_rank() == 0
    later = {"async_op": True}
    return {
        "all_reduce": lambda: dist.all_reduce(one.clone(), **later),
        "broadcast": lambda: dist.broadcast(one.clone(), 0, **later),
        "reduce": lambda: dist.reduce(one.clone(), 0, **later),
        "all_gather": lambda: dist.all_gather(parts, one, **later),
        "all_gather_into_tensor": lambda: dist.all_gather_into_tensor(many, one, **later),
        "reduce_scatter": lambda: dist.reduce_scatter(one, parts, **later),
        "reduce_scatter_tensor": lambda: dist.reduce_scatter_tensor(one, many, **later),
        "all_to_all": lambda: dist.all_to_all(
            [torch.empty(count) for _ in range(world_size)], parts, **later
        ),
        "all_to_all_single": lambda: dist.all_to_all_single(torch.empty_like(many), many, **later),
        "gather": lambda: dist.gather(one, parts if first else None, 0, **later),
        "scatter": lambda: dist.scatter(one.clone(), parts if first else None, 0, **later),
        "barrier": lambda: dist.barrier(**later),
    }


def check_every_call(rank: int, world_size: int) -> None:
    for count in (3, 100_000):
        for name, begin in every_call(world_size, count).items():
            work = begin()
            assert work is not None, name
            assert work.wait() in (True, None), name
            assert work.is_completed(), name
            work.wait()  # a second time: nothing


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_collective_gives_a_work(world_size: int) -> None:
    run_ranks(check_every_call, world_size)


def check_order(rank: int, world_size: int) -> None:
    """Thirty calls in flight on one tensor: only the order given yields the right number."""
    tensor = torch.ones(5000)
    works = []
    for _ in range(15):
        works.append(dist.all_reduce(tensor, async_op=True))
        works.append(dist.all_reduce(tensor, dist.ReduceOp.AVG, async_op=True))
    for work in reversed(works):
        work.wait()
    assert (tensor == float(world_size**15)).all()


@pytest.mark.parametrize("world_size", [2, 3])
def test_calls_take_effect_in_order(world_size: int) -> None:
    run_ranks(check_order, world_size)


def check_sync_after_async(rank: int, world_size: int) -> None:
    for count in (1, 400_000):
        first = torch.ones(count)
        pending = dist.all_reduce(first, async_op=True)
        second = torch.full((count,), 2.0)
        dist.all_reduce(second)  # behind the first, on all ranks
        assert pending.is_completed(), "a synchronous call overtook the queue"
        assert (first == world_size).all()
        assert (second == 2.0 * world_size).all()


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_synchronous_call_comes_after_the_queue(world_size: int) -> None:
    run_ranks(check_sync_after_async, world_size)


def check_futures(rank: int, world_size: int) -> None:
    tensor = torch.ones(1000)
    future = dist.all_reduce(tensor, async_op=True).get_future()
    doubled = future.then(lambda done: done.value()[0] * 2.0)
    cases.same_bits(doubled.wait(), torch.full((1000,), 2.0 * world_size), "then")
    late = dist.all_reduce(tensor, async_op=True)
    late.wait()
    value = late.get_future().wait()  # asked for after the end
    cases.same_bits(value[0], torch.full((1000,), float(world_size**2)), "asked late")


@pytest.mark.parametrize("world_size", [1, 2])
def test_futures(world_size: int) -> None:
    run_ranks(check_futures, world_size)


def check_held_buffers(rank: int, world_size: int) -> None:
    """The caller drops the tensors at once; the work keeps them."""
    outputs = []
    for number in range(50):
        output = torch.zeros(world_size * 20_000)
        work = dist.all_gather_into_tensor(
            output, torch.full((20_000,), float(number)), async_op=True
        )
        outputs.append((number, output, work))
    for number, output, work in outputs:
        work.wait()
        assert (output == float(number)).all(), number


def test_a_work_keeps_its_tensors() -> None:
    run_ranks(check_held_buffers, 2)


def check_dropped_work(rank: int, world_size: int) -> None:
    tensor = torch.ones(100_000)
    for _ in range(5):
        dist.all_reduce(tensor, async_op=True)  # nobody keeps the work
    dist.barrier()
    assert (tensor == float(world_size**5)).all()


def test_a_dropped_work_is_done_all_the_same() -> None:
    run_ranks(check_dropped_work, 2)


def check_wait_timeout(rank: int, world_size: int) -> None:
    tensor = torch.ones(1)
    work = dist.all_reduce(tensor, async_op=True)
    work.wait(datetime.timedelta(seconds=20))
    assert tensor.item() == world_size


def test_wait_with_a_timeout_that_is_long_enough() -> None:
    run_ranks(check_wait_timeout, 2)
