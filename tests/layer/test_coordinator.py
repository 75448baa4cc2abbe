"""A coordinator's calls on tensors: values, gradients, every dtype and layout, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributed import DistBackendError, ReduceOp

import reference
from c10d import cases
from fastvideo_dist import GroupCoordinator
from fastvideo_dist import parallel_state as ps
from fastvideo_dist.communication_op import sequence_model_parallel_all_to_all_4D
from fastvideo_dist.ops import split_sizes
from harness import run_ranks
from layer.jobs import fails, job

WORLDS = pytest.mark.parametrize("world_size", [1, 2, 3, 4])
BACKENDS = pytest.mark.parametrize("backend", ["nccl", "gloo"])


def over(backend: str, world_size: int) -> GroupCoordinator:
    """A group of all ranks; "nccl", FastVideo's default, means this project's backend."""
    return ps.init_model_parallel_group([list(range(world_size))], 0, backend, group_name="test")


def whole(rank: int, world_size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return cases.make(rank, (2, 2 * world_size, world_size, 3), dtype)


def check_values(rank: int, world_size: int, backend: str) -> None:
    with job(rank, world_size):
        group = over(backend, world_size)
        inputs = [whole(r, world_size) for r in range(world_size)]
        # As they come, transposed, with holes between the elements.
        for layout in (torch.clone, lambda x: x.mT.contiguous().mT, cases.holed):
            x = layout(inputs[rank])
            total = torch.stack(inputs).sum(0)
            torch.testing.assert_close(group.all_reduce(x), total)
            torch.testing.assert_close(group.all_reduce(x, None), total)
            torch.testing.assert_close(group.all_reduce(x, op=ReduceOp.MAX), max_of(inputs))
            wrapped = ReduceOp(ReduceOp.MAX)  # type: ignore[call-arg]
            torch.testing.assert_close(group.all_reduce(x, wrapped), max_of(inputs))
            if backend == "nccl":
                torch.testing.assert_close(group.all_reduce(x, ReduceOp.AVG), total / world_size)
            assert torch.equal(x, inputs[rank]), "an argument was changed"
            for dim in (-1, 0, 1, 2):
                assert torch.equal(group.all_gather(x, dim), torch.cat(inputs, dim))
                gathered = group.gather(x, world_size - 1, dim)
                assert (gathered is not None) == (rank == world_size - 1)
                assert gathered is None or torch.equal(gathered, torch.cat(inputs, dim))
            assert torch.equal(group.all_gather(x), torch.cat(inputs, -1))
            y = group.all_to_all_4D(x, scatter_dim=2, gather_dim=1)
            assert torch.equal(y, reference.all_to_all_4d(inputs, 2, 1)[rank])
            assert torch.equal(group.all_to_all_4D(y, 1, 2), x)
            for scale_grad in (True, False):
                part = group.shard(x, dim=1, scale_grad=scale_grad)
                assert torch.equal(part, x.chunk(world_size, 1)[rank])
                assert part.is_contiguous() or world_size == 1
            result = group.broadcast(x, src=world_size - 1)
            assert result is x
            assert torch.equal(x, inputs[-1])
        group.barrier()


def max_of(inputs: list[Tensor]) -> Tensor:
    return torch.stack(inputs).amax(0)


@BACKENDS
@WORLDS
def test_values(world_size: int, backend: str) -> None:
    run_ranks(check_values, world_size, backend=backend)


def check_gradients(rank: int, world_size: int, backend: str) -> None:
    """The gradient of the sum of all ranks' losses, as one process computes it."""
    calls: list[tuple[str, Callable[[GroupCoordinator, Tensor], Tensor], Callable[..., Tensor]]] = [
        ("all_reduce", lambda g, x: g.all_reduce(x), lambda r, xs: sum(xs)),
        ("all_gather", lambda g, x: g.all_gather(x, 2), lambda r, xs: torch.cat(xs, 2)),
        (
            "all_to_all_4D",
            lambda g, x: g.all_to_all_4D(x),
            lambda r, xs: reference.all_to_all_4d(xs, 2, 1)[r],
        ),
    ]
    with job(rank, world_size):
        group = over(backend, world_size)
        for name, call, meaning in calls:
            xs = [whole(r, world_size).requires_grad_() for r in range(world_size)]
            loss = torch.zeros((), dtype=torch.float64)
            for r in range(world_size):
                y = meaning(r, xs)
                loss = loss + (y**2 * cases.make(r, y.shape, y.dtype, seed=1)).sum()
            wanted = torch.autograd.grad(loss, xs)[rank]
            x = whole(rank, world_size).requires_grad_()
            y = call(group, x)
            (y**2 * cases.make(rank, y.shape, y.dtype, seed=1)).sum().backward()
            torch.testing.assert_close(x.grad, wanted, msg=name)
        for scale_grad in (True, False):
            x = whole(0, world_size).requires_grad_()
            group.shard(x, 1, scale_grad=scale_grad).sum().backward()
            factor = 1 / world_size if scale_grad else 1.0
            torch.testing.assert_close(x.grad, torch.full_like(x, factor))


@BACKENDS
@WORLDS
def test_gradients(world_size: int, backend: str) -> None:
    run_ranks(check_gradients, world_size, backend=backend)


def check_maximum(rank: int, world_size: int, backend: str) -> None:
    with job(rank, world_size):
        x = torch.ones(2, requires_grad=True)
        y = over(backend, world_size).all_reduce(x, ReduceOp.MAX)
        with fails(NotImplementedError):
            y.sum().backward()


@BACKENDS
def test_the_gradient_of_a_maximum_is_refused(backend: str) -> None:
    run_ranks(check_maximum, 2, backend=backend)


def check_dtypes(rank: int, world_size: int, backend: str) -> None:
    with job(rank, world_size):
        group = over(backend, world_size)
        for dtype in cases.MOVED:
            inputs = [whole(r, world_size, dtype) for r in range(world_size)]
            x = inputs[rank]
            cases.same_bits(group.all_gather(x, 1), cat(inputs, 1), dtype)
            wanted = reference.all_to_all_4d(inputs, 2, 1)[rank]
            cases.same_bits(group.all_to_all_4D(x), wanted, dtype)
            cases.same_bits(group.shard(x, 1, scale_grad=True), x.chunk(world_size, 1)[rank], dtype)
            if rank == 0:
                group.send(x.transpose(1, 2), world_size - 1)
            elif rank == world_size - 1:
                received = group.recv(x.transpose(1, 2).shape, dtype, 0)
                cases.same_bits(received, inputs[0].transpose(1, 2).contiguous(), dtype)
            cases.same_bits(group.broadcast(x.clone(), 1), inputs[1], dtype)


def cat(inputs: list[Tensor], dim: int) -> Tensor:
    """torch.cat has no float8."""
    return (
        torch.cat([x.movedim(dim, 0).contiguous().view(torch.uint8) for x in inputs])
        .view(inputs[0].dtype)
        .movedim(0, dim)
        .contiguous()
    )


@BACKENDS
def test_every_dtype(backend: str) -> None:
    run_ranks(check_dtypes, 3, backend=backend)


def check_alone(rank: int, world_size: int) -> None:
    with job(rank, world_size):
        group = ps.get_sp_group()
        x = torch.ones(2, 3, 4, 5)
        assert group.all_reduce(x) is x
        assert group.all_gather(x) is x
        assert group.gather(x) is x
        assert group.all_to_all_4D(x) is x
        assert group.shard(x, scale_grad=True) is x
        assert group.broadcast(x) is x
        tensors = {"x": x}
        assert group.broadcast_tensor_dict(tensors) is tensors
        assert group.send_tensor_dict(tensors) is tensors
        assert group.recv_tensor_dict() is None
        assert group.broadcast_object(tensors) is tensors
        assert group.broadcast_object_list([x])[0] is x
        group.barrier()
        for call in (lambda: group.send(x), lambda: group.recv(x.shape, x.dtype)):
            with fails(ValueError, "one rank", "sp:0"):
                call()
        for call in (lambda: group.send_object(1, 0), lambda: group.recv_object(0)):
            with fails(ValueError, "this rank itself", "sp:0"):
                call()


def test_with_one_rank_the_same_tensor_comes_back() -> None:
    run_ranks(check_alone, 1)


def check_refused(rank: int, world_size: int, backend: str) -> None:
    """All on this rank alone: nothing was sent, so the group is as good as before."""
    with job(rank, world_size):
        group = over(backend, world_size)
        x = torch.ones(2, 5, 7, 3)
        where = (group.unique_name, "2")
        for call in (
            lambda: group.broadcast(x, 3),
            lambda: group.broadcast_object(1, -1),
            lambda: group.broadcast_object_list([1], 3),
            lambda: group.broadcast_tensor_dict({}, 3),
            lambda: group.gather(x, 3),
            lambda: group.send(x, 3),
            lambda: group.recv(x.shape, x.dtype, 7),
            lambda: group.send_object(1, 3),
            lambda: group.recv_object(3),
            lambda: group.send_tensor_dict({}, 3),
            lambda: group.recv_tensor_dict(3),
        ):
            with fails(ValueError, group.unique_name, "ranks 0 to 2", f"rank {rank}"):
                call()
        with fails(ValueError, *where, "dimension 2", "[2, 5, 7, 3]", "size 7", "3 ranks"):
            group.all_to_all_4D(x)
        with fails(ValueError, *where, "dimension 1", "size 5", "3 ranks"):
            group.shard(x, 1, scale_grad=True)
        for call in (lambda: group.all_gather(x, 4), lambda: group.gather(x, 0, -5)):
            with fails(ValueError, *where, "[2, 5, 7, 3]", "no dimension"):
                call()
        with fails(ValueError, "[5, 7, 3]"):
            group.all_to_all_4D(x[0])
        with fails(ValueError):
            group.all_to_all_4D(x, 1, 1)
        with fails(ValueError, "reduction", group.unique_name, f"rank {rank}"):
            group.all_reduce(x, "sum")
        with fails(TypeError, "dictionary"):
            group.send_tensor_dict([x], (rank + 1) % world_size)
        with fails(TypeError if rank == 0 else RuntimeError, "dictionary", "NoneType"):
            group.broadcast_tensor_dict(None, 0)
        with fails(ValueError, "rank 0.0", "ranks 0 to 2"):
            group.broadcast_object(1, 0.0)  # type: ignore[arg-type]
        with fails(ValueError, group.unique_name, f"rank {rank}", "does not know"):
            group.broadcast_object_list([1], group="foreign")  # type: ignore[arg-type]
        without = GroupCoordinator([list(range(world_size))], 0, backend, False)
        with fails(ValueError, "use_device_communicator=False"):
            without.all_reduce(x)
        assert (group.all_reduce(x) == 3).all()


@BACKENDS
def test_wrong_arguments_raise_and_break_nothing(backend: str) -> None:
    run_ranks(check_refused, 3, backend=backend)


def check_disagreement(rank: int, world_size: int, case: str) -> None:
    ps.init_distributed_environment(world_size, rank)
    ps.initialize_model_parallel(1, world_size)
    group = ps.get_sp_group()
    odd = rank == world_size - 1
    count = 5 if odd else 4
    dtype = torch.float64 if odd else torch.float32
    calls: dict[str, Callable[[], object]] = {
        "all_reduce, sizes": lambda: group.all_reduce(torch.ones(count)),
        "all_reduce, dtypes": lambda: group.all_reduce(torch.ones(4, dtype=dtype)),
        "all_reduce, ops": lambda: group.all_reduce(
            torch.ones(4), ReduceOp.MAX if odd else ReduceOp.SUM
        ),
        "all_gather, shapes": lambda: group.all_gather(torch.ones(4, count), 0),
        "all_to_all_4D, shapes": lambda: group.all_to_all_4D(torch.ones(1, count, world_size, 1)),
        "broadcast, sizes": lambda: group.broadcast(torch.ones(count)),
        "broadcast, sources": lambda: group.broadcast(torch.ones(4), src=int(odd)),
        "broadcast, dtypes": lambda: group.broadcast(torch.ones(4, dtype=dtype)),
        "broadcast, shapes": lambda: group.broadcast(torch.ones((3, 2) if odd else (2, 3))),
        "gather, sizes": lambda: group.gather(torch.ones(count)),
        "gather, shapes": lambda: group.gather(torch.ones((3, 2) if odd else (2, 3))),
        "gather, roots": lambda: group.gather(torch.ones(4), int(odd)),
        "other calls": lambda: group.barrier() if odd else group.all_reduce(torch.ones(1)),
    }
    with fails(DistBackendError, "group", "rank", *WORDS.get(case, ())):
        calls[case]()
    ps.cleanup_dist_env_and_memory()


DISAGREEMENTS = [
    *("all_reduce, sizes", "all_reduce, dtypes", "all_reduce, ops", "all_gather, shapes"),
    *("all_to_all_4D, shapes", "broadcast, sizes", "broadcast, sources", "broadcast, dtypes"),
    *("broadcast, shapes", "gather, sizes", "gather, shapes", "gather, roots", "other calls"),
]
WORDS = {
    "broadcast, shapes": ("float32 [2, 3]", "float32 [3, 2]", "sp:0"),
    "broadcast, sources": ("from rank 0", "from rank 1", "sp:0"),
    "broadcast, dtypes": ("float32 [4]", "float64 [4]", "sp:0"),
    "gather, shapes": ("float32 [2, 3]", "float32 [3, 2]", "sp:0"),
    "gather, roots": ("to rank 0", "to rank 1", "sp:0"),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_ranks_that_disagree_raise_on_all(case: str) -> None:
    run_ranks(check_disagreement, 3, case=case)


TENSORS = (torch.ones(2, 3), torch.ones(200, 300), torch.ones(0, 7), torch.tensor(1.0))


def check_receiver(rank: int, world_size: int, backend: str) -> None:
    """The receiver asks for another tensor than was sent; it is told, and the next one comes."""
    with job(rank, world_size):
        group = over(backend, world_size)
        for sent in TENSORS:
            shape = list(sent.shape)
            if rank == 0:
                for _ in range(4):
                    group.send(sent, 1)
                continue
            for size, dtype in (
                (shape[::-1] if sent.dim() > 1 else [1], torch.float32),
                ([*shape, 2], torch.float32),
                (shape, torch.int32),
            ):
                values = (f"float32 {shape}", f"{str(dtype)[6:]} {list(size)}")
                with fails(ValueError, "recv", group.unique_name, "rank 1", "rank 0", *values):
                    group.recv(torch.Size(size), dtype, 0)
            assert torch.equal(group.recv(sent.shape, sent.dtype, 0), sent)
        with fails(TypeError, "layout"):
            group.send(torch.eye(3).to_sparse(), 1 - rank)
        communicator = group.device_communicator
        assert communicator is not None
        if rank == 0:
            communicator.send(torch.ones(2, 3), 1)
        else:
            with fails(ValueError, "[3, 2]", "[2, 3]"):
                communicator.recv(torch.Size([3, 2]), torch.float32, 0)
        expanded = torch.full((2, 1), float(rank)).expand(2, 3)
        if rank == 0:
            assert group.broadcast(expanded) is expanded
        else:
            with fails(ValueError, "expanded", "[1, 0]", group.unique_name, "rank 1"):
                group.broadcast(expanded)
        group.barrier()


@BACKENDS
def test_a_receiver_that_expects_something_else_is_told(backend: str) -> None:
    run_ranks(check_receiver, 2, backend=backend)


def check_other_message(rank: int, world_size: int) -> None:
    """A dictionary is no tensor and no object; tensors stand beside the order of the others."""
    with job(rank, world_size):
        group = ps.get_sp_group()
        if rank == 0:
            group.isend_tensor_dict({"x": torch.full((60_000,), 2.0)}, 1)
            group.send(torch.full((50_000,), 3.0), 1)
        else:
            handle = group.irecv_tensor_dict(0)
            assert (group.recv(torch.Size([50_000]), torch.float32, 0) == 3).all()
            received = handle.wait()
            assert received is not None
            assert (received["x"] == 2).all()
        group.barrier()


def test_tensors_overtake_dictionaries() -> None:
    run_ranks(check_other_message, 2)


def check_unequal(rank: int, world_size: int) -> None:
    """7 heads and a sequence of 11 over the ranks, there and back; values and gradients."""
    with job(rank, world_size):
        group = ps.get_sp_group()
        heads, lengths = split_sizes(7, world_size), split_sizes(11, world_size)
        whole = cases.make(0, (2, 11, 7, 3), torch.float64)
        weight = cases.make(1, whole.shape, torch.float64)
        x = whole.split(lengths, 1)[rank].clone().requires_grad_()
        for call in (group.all_to_all_4D, sequence_model_parallel_all_to_all_4D):
            x.grad = None
            y = call(x, 2, 1, scatter_sizes=heads, gather_sizes=lengths)
            assert torch.equal(y, whole.split(heads, 2)[rank])
            (y**2 * weight.split(heads, 2)[rank]).sum().backward()
            torch.testing.assert_close(x.grad, (2 * whole * weight).split(lengths, 1)[rank])
            back = call(y, 1, 2, scatter_sizes=lengths, gather_sizes=heads)
            assert torch.equal(back, x)
        part = group.shard(whole, 1, scale_grad=True, sizes=lengths)
        assert torch.equal(part, x)
        assert torch.equal(group.all_gather(part, 1, sizes=lengths), whole)
        with fails(ValueError, "scatter_sizes", "7"):
            group.all_to_all_4D(x, 2, 1, scatter_sizes=[1] * world_size, gather_sizes=lengths)
        gloo = over("gloo", world_size)
        with fails(NotImplementedError, "scatter_sizes", "fastvideo", "gloo"):
            gloo.all_to_all_4D(x, 2, 1, scatter_sizes=heads)
        for wrong in (
            lambda: gloo.shard(whole, 1, scale_grad=True, sizes=lengths),
            lambda: gloo.all_gather(x, 1, sizes=lengths),
        ):
            with fails(NotImplementedError, "sizes", "gloo"):
                wrong()


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_unequal_parts(world_size: int) -> None:
    run_ranks(check_unequal, world_size)
