"""Random sequences of collectives, drawn here, run by all ranks, compared with the reference."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
from c10d import cases
from harness import run_ranks

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int32, torch.uint8, torch.int64]


def all_reduce(rank: int, inputs: list[Tensor], root: int) -> tuple[Tensor, Tensor]:
    tensor = inputs[rank].clone()
    dist.all_reduce(tensor)
    return tensor, reference.all_reduce(inputs)


def all_reduce_max(rank: int, inputs: list[Tensor], root: int) -> tuple[Tensor, Tensor]:
    tensor = inputs[rank].clone()
    dist.all_reduce(tensor, dist.ReduceOp.MAX, async_op=True).wait()
    return tensor, reference.all_reduce(inputs, "MAX")


def broadcast(rank: int, inputs: list[Tensor], root: int) -> tuple[Tensor, Tensor]:
    tensor = inputs[rank].clone()
    dist.broadcast(tensor, root)
    return tensor, reference.broadcast(inputs, root)


def all_gather(rank: int, inputs: list[Tensor], root: int) -> tuple[Tensor, Tensor]:
    output = torch.empty([len(inputs), *inputs[0].shape], dtype=inputs[0].dtype)
    dist.all_gather(list(output.unbind()), inputs[rank])
    return output, torch.stack(reference.all_gather(inputs))


def reduce_scatter(rank: int, inputs: list[Tensor], root: int) -> tuple[Tensor, Tensor]:
    world_size = len(inputs)
    lists = [[(given + part).to(given.dtype) for part in range(world_size)] for given in inputs]
    output = torch.empty_like(inputs[rank])
    dist.reduce_scatter(output, lists[rank])
    return output, reference.reduce_scatter(lists)[rank]


def all_to_all(rank: int, inputs: list[Tensor], root: int) -> tuple[Tensor, Tensor]:
    wide = [given.repeat(len(inputs), *[1] * (given.dim() - 1)) for given in inputs]
    output = torch.empty_like(wide[rank])
    dist.all_to_all_single(output, wide[rank])
    return output, reference.all_to_all_single(wide)[rank]


def ring(rank: int, inputs: list[Tensor], root: int) -> tuple[Tensor, Tensor]:
    world_size = len(inputs)
    if world_size == 1:
        return inputs[0], inputs[0]
    output = torch.empty_like(inputs[rank])
    sent = dist.isend(inputs[rank], (rank + 1) % world_size, tag=root)
    dist.recv(output, (rank - 1) % world_size, tag=root)
    assert sent is not None
    sent.wait()
    return output, inputs[(rank - 1) % world_size]


def barrier(rank: int, inputs: list[Tensor], root: int) -> tuple[Tensor, Tensor]:
    dist.barrier()
    return inputs[rank], inputs[rank]


CALLS = {
    call.__name__: call
    for call in (
        all_reduce,
        all_reduce_max,
        broadcast,
        all_gather,
        reduce_scatter,
        all_to_all,
        ring,
        barrier,
    )
}


def run_sequence(rank: int, world_size: int, steps: list[tuple[Any, ...]]) -> list[str]:
    digests = []
    for number, (name, dtype, shape, root) in enumerate(steps):
        inputs = cases.all_inputs(world_size, shape, dtype, seed=number)
        result, wanted = CALLS[name](rank, inputs, root % world_size)
        cases.reduced(result, wanted, f"step {number}: {name} {dtype} {shape} root {root}")
        if name.startswith(("all_reduce", "all_gather", "broadcast")):
            digests.append(cases.digest([result]))
    return digests


STEP = st.tuples(
    st.sampled_from(sorted(CALLS)),
    st.sampled_from(DTYPES),
    st.one_of(
        st.lists(st.integers(0, 40), min_size=1, max_size=3),
        st.lists(st.integers(0, 300_000), min_size=1, max_size=1),
    ),
    st.integers(0, 11),
)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,  # the same sequences in every run: a failure is a change
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(world_size=st.integers(1, 4), steps=st.lists(STEP, min_size=1, max_size=12))
def test_any_sequence(world_size: int, steps: list[tuple[Any, ...]]) -> None:
    digests = run_ranks(run_sequence, world_size, steps=steps)
    assert all(each == digests[0] for each in digests), "the ranks hold different bits"
