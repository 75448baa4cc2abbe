"""all_to_all_4d of CUDA tensors, on fakes that move data: tests/gpu_fakes. Always compared with the
same op of the same tensors on the CPU, bit by bit."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import gpu_fakes
from c10d import cases
from fastvideo_dist import ops
from fastvideo_dist._compat import extension
from gpu_fakes import Fakes, moved, on_gpu
from gpu_fakes.ranks import run_gpu_ranks
from rank_process import Control

WORLDS = pytest.mark.parametrize("world_size", [1, 2, 3])


run = partial(run_gpu_ranks, within=90)


def join(control: Control, fakes: Fakes, folder: str, check: str = "beside") -> None:
    gpu_fakes.become_gpu_rank(fakes, folder, check)
    control.init()


def same_as_on_cpu(xs: Sequence[Tensor], what: object, **settings: Any) -> None:
    wanted = ops.all_to_all_4d(list(xs), **settings)
    got = ops.all_to_all_4d([on_gpu(x) for x in xs], **settings)
    for i, (there, here) in enumerate(zip(got, wanted, strict=True)):
        assert there.is_cuda
        assert there.is_contiguous()
        cases.same_bits(there.cpu(), here, (what, i))


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same values with other strides, and an expanded tensor."""
    batch, length, heads, dim = x.shape
    padded = torch.zeros(batch, length + 1, heads + 2, dim + 3, dtype=x.dtype)
    padded[:, 1:, 2:, 3:] = x
    return {
        "contiguous": x,
        "heads first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "dims first": x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
        "every second": x.repeat_interleave(2, dim=3)[..., ::2],
        "within a larger one": padded[:, 1:, 2:, 3:],
        "one head for all": x[:, :, :1].expand(batch, length, heads, dim),
        "one for all of the sequence": x[:, :1].expand(batch, length, heads, dim),
    }


def every_layout(control: Control, fakes: Fakes, folder: str) -> None:
    join(control, fakes, folder)
    rank, world = control.rank, control.world_size
    for batch, dims in itertools.product((1, 2), ((2, 1), (1, 2), (3, 1), (0, 3))):
        sizes = [batch * world, 3 * world, 2 * world, 4 * world]
        for dtype in (torch.bfloat16, torch.float32, torch.bool, torch.complex128):
            x = cases.make(rank, sizes, dtype)
            for name, strided in layouts(x).items():
                same_as_on_cpu(
                    [strided], (dims, dtype, name), scatter_dim=dims[0], gather_dim=dims[1]
                )


@WORLDS
def test_every_layout(world_size: int) -> None:
    run(every_layout, world_size)


def qkv_and_gate(control: Control, fakes: Fakes, folder: str, check: str) -> None:
    """Four tensors of unequal parts and of different sizes, there and back."""
    join(control, fakes, folder, check)
    rank, world = control.rank, control.world_size
    for length, heads, batch in itertools.product((1, 7, 10), (1, 5, 8), (1, 3)):
        lengths, per_rank = ops.split_sizes(length, world), ops.split_sizes(heads, world)
        whole = [cases.make(0, (batch, length, heads, 8), torch.bfloat16, seed=s) for s in range(4)]
        mine = [x.split(lengths, dim=1)[rank] for x in whole]
        there = ops.all_to_all_4d([on_gpu(x) for x in mine], 2, 1, gather_sizes=lengths)
        for x, y in zip(whole, there, strict=True):
            cases.same_bits(y.cpu(), x.split(per_rank, dim=2)[rank], (length, heads, "there"))
        back = ops.all_to_all_4d(there, 1, 2, gather_sizes=per_rank)
        for x, y in zip(mine, back, strict=True):
            cases.same_bits(y.cpu(), x, (length, heads, "back"))


@WORLDS
@pytest.mark.parametrize("check", ["beside", "before"])
def test_unequal_parts_of_four_tensors(world_size: int, check: str) -> None:
    run(qkv_and_gate, world_size, check=check)


def one_tensor(control: Control, fakes: Fakes, folder: str) -> None:
    """The op of a single tensor, and one rank that asks for the list's."""
    join(control, fakes, folder)
    x = cases.make(control.rank, (1, 4, 2 * control.world_size, 8), torch.float32)
    wanted = ops.all_to_all_4d(x)
    there = ops.all_to_all_4d(on_gpu(x))
    cases.same_bits(there.cpu(), wanted, "there")
    cases.same_bits(ops.all_to_all_4d(there, 1, 2).cpu(), x, "back")
    mixed = ops.all_to_all_4d([on_gpu(x)])[0] if control.rank == 0 else ops.all_to_all_4d(on_gpu(x))
    cases.same_bits(mixed.cpu(), wanted, "mixed")


@WORLDS
def test_a_single_tensor(world_size: int) -> None:
    run(one_tensor, world_size)


def backward(ys: Sequence[Tensor], dys: Sequence[Tensor]) -> Sequence[Tensor]:
    """What the engine does with the node that made `ys`. The engine itself asks for a real GPU."""
    node: Any = ys[0].grad_fn
    gradients = node(*map(on_gpu, dys))
    return gradients if isinstance(gradients, tuple) else [gradients]


def gradients(control: Control, fakes: Fakes, folder: str) -> None:
    join(control, fakes, folder)
    world = control.world_size
    shapes = [(1, 3, 2 * world, 8), (2, 3, world, 4)]
    xs = [cases.make(control.rank, shape, torch.float32, seed=1) for shape in shapes]
    here = [x.clone().requires_grad_() for x in xs]
    wanted_ys = ops.all_to_all_4d(here)
    dys = [cases.make(control.rank, y.shape, torch.float32, seed=2) for y in wanted_ys]
    wanted = torch.autograd.grad(wanted_ys, here, dys)
    there = [on_gpu(x).requires_grad_() for x in xs]
    ys = ops.all_to_all_4d(there)
    assert all(y.requires_grad for y in ys)
    got = backward(ys, dys)
    for a, b in zip(got[:2], wanted, strict=True):
        cases.same_bits(a.cpu(), b, "gradient")
    y = ops.all_to_all_4d(on_gpu(xs[0]).requires_grad_())
    cases.same_bits(backward([y], dys[:1])[0].cpu(), wanted[0], "gradient of one")


@WORLDS
def test_gradients(world_size: int) -> None:
    run(gradients, world_size)


def bytes_moved(control: Control, fakes: Fakes, folder: str) -> list[tuple[str, float, int]]:
    """Of each exchange: bytes of device memory read or written for each byte of the tensors, and
    kernels. Those of this rank; NCCL's count where they are read and where they are written."""
    join(control, fakes, folder)
    world = control.world_size
    rows = []
    x = cases.make(control.rank, (1, 6, 2 * world, 16), torch.bfloat16)
    y = cases.make(control.rank, (1, 6 * world, 2, 16), torch.bfloat16)
    batch = cases.make(control.rank, (2, 6, 2 * world, 16), torch.bfloat16)
    inputs = {
        "there": ([x] * 4, 2, 1),
        "there, strided": ([layouts(x)["heads first"]] * 4, 2, 1),
        "there, batch of 2": ([batch] * 4, 2, 1),
        "back": ([y], 1, 2),
        "back of four": ([y] * 4, 1, 2),
    }
    for name, (xs, scatter_dim, gather_dim) in inputs.items():
        there = [on_gpu(t) for t in xs]
        ops.all_to_all_4d(there, scatter_dim, gather_dim)[0].cpu()
        bytes_before, launches_before = moved(fakes)
        results = ops.all_to_all_4d(there, scatter_dim, gather_dim)
        results[0].cpu()
        bytes_after, launches_after = moved(fakes)
        size = sum(t.numel() * t.element_size() for t in xs)
        rows.append((name, (bytes_after - bytes_before) / size, launches_after - launches_before))
    return rows


@WORLDS
def test_memory_is_touched_four_times_at_most(world_size: int) -> None:
    for rows in run(bytes_moved, world_size):
        for name, times, launches in rows:
            assert times == pytest.approx(4 - 2 / world_size), name
            assert launches == 1, name


def captured(control: Control, fakes: Fakes, folder: str) -> int:
    """Events asked while the exchange is captured, there and back."""
    join(control, fakes, folder)
    x = cases.make(control.rank, (1, 4, 2 * control.world_size, 8), torch.float32)
    wanted = ops.all_to_all_4d(x)
    there = on_gpu(x)
    ops.all_to_all_4d(there).cpu()  # the ranks have met
    time.sleep(0.1)  # nothing is left for the watchdog to look at
    before = gpu_fakes.event_queries(fakes)
    torch.ops.fake_gpu.set_capturing(0, True)
    y = ops.all_to_all_4d(there)
    back = ops.all_to_all_4d([y, y], 1, 2)
    torch.ops.fake_gpu.set_capturing(0, False)
    queries = gpu_fakes.event_queries(fakes) - before
    cases.same_bits(y.cpu(), wanted, "there")
    for one in back:
        cases.same_bits(one.cpu(), x, "back")
    return queries


def test_a_capture_asks_no_event() -> None:
    assert run(captured, 2) == [0, 0]


def first_call_in_a_capture(control: Control, fakes: Fakes, folder: str) -> None:
    """Nothing connects for the sake of an exchange alone."""
    join(control, fakes, folder)
    x, y = on_gpu(torch.zeros(1, 2, control.world_size, 4)), on_gpu(torch.zeros(3))
    torch.distributed.all_reduce(y)
    torch.ops.fake_gpu.set_capturing(0, True)
    ops.all_to_all_4d(x)
    torch.ops.fake_gpu.set_capturing(0, False)
    x.cpu()


def test_the_first_exchange_may_be_captured_once_the_ranks_have_met() -> None:
    run(first_call_in_a_capture, 2)


def the_kernel_alone(control: Control, fakes: Fakes, folder: str) -> None:
    gpu_fakes.become_gpu_rank(fakes, folder)
    copy_on_gpu = extension().copy_on_gpu
    x = cases.make(0, (3, 5, 7, 8), torch.bfloat16)
    sources = [*layouts(x).values()]
    targets = [torch.zeros_like(source).contiguous() for source in sources]
    launches = moved(fakes)[1]
    copy_on_gpu([on_gpu(t) for t in sources], [on_gpu(t) for t in targets])
    gpu_fakes.synchronize()
    assert moved(fakes)[1] == launches + 1
    for source, target in zip(sources, targets, strict=True):
        cases.same_bits(target, source, "copied")
    copy_on_gpu([], [])
    for wrong, words in [
        (([on_gpu(x)], []), "1 sources but 0 targets"),
        (([on_gpu(x)], [x]), "is on cuda:0 or cpu; all must be on one GPU"),
        (([on_gpu(x)], [on_gpu(x, 1)]), "is on cuda:0 or cuda:1"),
        (([on_gpu(x)], [on_gpu(x[1:])]), "they must be equal"),
        (([on_gpu(x)], [on_gpu(x.half())]), "they must be equal"),
    ]:
        with pytest.raises(ValueError, match=words):
            copy_on_gpu(*wrong)


def test_the_kernel_alone() -> None:
    run(the_kernel_alone, 1)


def without_kernels(control: Control, fakes: Fakes, folder: str) -> list[str]:
    join(control, fakes, folder)
    extension().use_kernels(None, "nobody compiled them")
    x = on_gpu(torch.zeros(1, 2, control.world_size, 4))
    said = []
    for call in (lambda: ops.all_to_all_4d(x), lambda: ops.all_to_all_4d([x, x])):
        with pytest.raises(NotImplementedError) as caught:
            call()
        said.append(str(caught.value))
    gpu_fakes.use_kernels(fakes)
    with pytest.raises(ValueError, match=r"x\[1\] is on cuda:1 but another tensor .* cuda:0"):
        ops.all_to_all_4d([x, on_gpu(torch.zeros(1, 2, control.world_size, 4), 1)])
    with pytest.raises(ValueError, match=r"x\[1\] is on cuda:0 but another tensor .* on cpu"):
        ops.all_to_all_4d([torch.zeros(1, 2, control.world_size, 4), x])
    ops.all_to_all_4d(x).cpu()  # all of this left the group usable
    return said


def test_what_is_refused() -> None:
    for said in run(without_kernels, 2):
        for message in said:
            assert "x is on a GPU, but this package has no kernels" in message
            assert "nobody compiled them" in message
            assert "FASTVIDEO_DIST_CUDA=1" in message


def failing_launch(control: Control, fakes: Fakes, folder: str) -> str:
    join(control, fakes, folder)
    x = on_gpu(torch.zeros(1, 2, control.world_size, 4))
    ops.all_to_all_4d(x).cpu()
    if control.rank == 0:
        gpu_fakes.fail_next_launch(fakes)

    def until_it_is_heard_of() -> None:
        for _ in range(2000):
            ops.all_to_all_4d(x).cpu()

    with pytest.raises(torch.distributed.DistBackendError) as caught:
        until_it_is_heard_of()
    return str(caught.value)


def test_a_kernel_that_fails_ends_the_group_on_all_ranks() -> None:
    first, second = run(failing_launch, 2)
    assert "was not launched: an error of the fake (CUDA error 719)" in first
    assert "was not launched" in second
