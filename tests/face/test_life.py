"""Creation, split, the end: who is in which group, what ids may be, what is left behind."""

from __future__ import annotations

import gc
import pickle
import threading
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from face.jobs import connect, refused, shared_id
from fastvideo_dist import nccl
from fastvideo_dist.nccl import Communicator, UniqueId, get_unique_id
from harness import run_ranks

DEAD = "Cannot {}: Communicator not initialized"


def uses(comm: Communicator) -> list[tuple[str, object]]:
    x = np.zeros(4)
    return [
        ("allreduce", lambda: comm.allreduce(x, x, nccl.SUM)),
        ("reduce", lambda: comm.reduce(x, x, nccl.SUM, 0)),
        ("broadcast", lambda: comm.broadcast(x, x, 0)),
        ("allgather", lambda: comm.allgather(x, x)),
        ("gather", lambda: comm.gather(x, x, 0)),
        ("reduce_scatter", lambda: comm.reduce_scatter(x, x, nccl.SUM)),
        ("alltoall", lambda: comm.alltoall(x, x)),
        ("scatter", lambda: comm.scatter(x, x, 0)),
        ("send", lambda: comm.send(x, 0)),
        ("recv", lambda: comm.recv(x, 0)),
        ("split", lambda: comm.split(0)),
        ("create_pre_mul_sum", lambda: comm.create_pre_mul_sum(2.0)),
        ("get rank", lambda: comm.rank),
        ("get nranks", lambda: comm.nranks),
        ("get device", lambda: comm.device),
    ]


def check_unusable(comm: Communicator) -> None:
    assert not comm.is_valid
    assert repr(comm) == "<Communicator: null>"
    for name, use in uses(comm):
        refused(use, DEAD.format(name))  # type: ignore[arg-type]
    comm.destroy()
    comm.abort()
    comm.finalize()
    comm.close_all_resources()


def test_a_null_communicator() -> None:
    check_unusable(Communicator())


def check_properties(rank: int, world_size: int) -> None:
    comm = connect(rank, world_size, name="tp")
    assert (comm.rank, comm.nranks, comm.name, comm.device) == (rank, world_size, "tp", None)
    assert comm.is_valid
    assert repr(comm) == f"<Communicator: tp, rank={rank}/{world_size}>"
    refused(
        lambda: comm.initialize(world_size, rank, get_unique_id(empty=True)), "already initialized"
    )
    dist.barrier()
    comm.destroy()
    check_unusable(comm)


@pytest.mark.parametrize("world_size", [1, 3])
def test_what_it_says_of_itself_and_after_destroy(world_size: int) -> None:
    run_ranks(check_properties, world_size)


def check_aborted(rank: int, world_size: int) -> None:
    comm = connect(rank, world_size)
    dist.barrier()
    comm.abort()
    check_unusable(comm)
    comm.initialize(world_size, rank, shared_id(rank))  # the object may be used again
    comm.allreduce(np.ones(1), np.ones(1), nccl.SUM)
    dist.barrier()
    comm.destroy()


def test_after_abort() -> None:
    run_ranks(check_aborted, 2)


def check_block(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        assert comm.is_valid
        comm.allreduce(np.ones(1), np.ones(1), nccl.SUM)
    assert not comm.is_valid
    comm = connect(rank, world_size)
    if rank == 0:
        with pytest.raises(ArithmeticError), comm:
            raise ArithmeticError("overflow")
        return
    with pytest.raises(dist.DistBackendError, match="ArithmeticError: overflow"):
        comm.allreduce(np.ones(1), np.ones(1), nccl.SUM)
    comm.destroy()


def test_a_block_that_raises_aborts_with_its_words() -> None:
    run_ranks(check_block, 2)


def check_dropped(rank: int, world_size: int) -> None:
    """Without destroy nothing is left either; the harness counts descriptors."""
    for _ in range(3):
        comm = connect(rank, world_size)
        comm.allreduce(np.ones(70_000), np.ones(70_000), nccl.SUM)
        child = comm.split(0)
        dist.barrier()
        del comm, child
        gc.collect()


def test_a_dropped_communicator_leaves_nothing() -> None:
    run_ranks(check_dropped, 2)


def check_split(rank: int, world_size: int) -> None:
    with connect(rank, world_size, name="world") as comm:
        halves = comm.split(rank % 2, key=-rank)
        ranks = sorted(range(rank % 2, world_size, 2), reverse=True)
        assert (halves.rank, halves.nranks) == (ranks.index(rank), len(ranks))
        assert halves.name == f"world/0.{rank % 2}"
        who = np.empty(len(ranks), np.int64)
        halves.allgather(np.array([rank]), who)
        assert who.tolist() == ranks

        same_key = comm.split(7, key=3)
        assert (same_key.rank, same_key.nranks) == (rank, world_size)
        some = comm.split(None if rank == 0 else 2**40)
        assert some.is_valid == (rank != 0)
        if some.is_valid:
            assert (some.rank, some.nranks) == (rank - 1, world_size - 1)
            out = np.zeros(3)
            some.allreduce(np.ones(3), out, nccl.SUM)
            assert (out == world_size - 1).all()
            grandchild = some.split(0)
            grandchild.allreduce(out, out, nccl.MAX)
            grandchild.destroy()
        nobody = comm.split()
        assert not nobody.is_valid
        check_unusable(nobody)

        same_key.destroy()
        x = np.ones(2)
        comm.allreduce(x, x, nccl.SUM)  # the end of a child is not its parent's
        halves.allreduce(x, x, nccl.SUM)
        dist.barrier()
        some.destroy()
        halves.destroy()


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_split_by_color_and_key(world_size: int) -> None:
    run_ranks(check_split, world_size)


def check_parent_first(rank: int, world_size: int) -> None:
    comm = connect(rank, world_size)
    child = comm.split(0)
    dist.barrier()
    comm.destroy()
    out = np.zeros(1)
    child.allreduce(np.ones(1), out, nccl.SUM)
    again = child.split(0)
    again.allreduce(np.ones(1), out, nccl.SUM)
    assert out == world_size
    dist.barrier()
    again.destroy()
    child.destroy()


def test_a_child_outlives_its_parent() -> None:
    run_ranks(check_parent_first, 2)


def check_wrong_splits(rank: int, world_size: int) -> None:
    with connect(rank, world_size) as comm:
        refused(lambda: comm.split(-1), "color -1 is negative; None takes part in no group")
        refused(lambda: comm.split("a"), "color must be an int, got str")  # type: ignore[arg-type]
        refused(lambda: comm.split(0, 2**63), "does not fit 64 bits")
        refused(lambda: comm.split(0, config=object()), "config must be None")  # type: ignore[arg-type]
        with nccl.group():
            refused(lambda: comm.split(0), "not between group_start and group_end")
        comm.split(0).destroy()


def test_wrong_splits() -> None:
    run_ranks(check_wrong_splits, 1)


def check_many(rank: int, world_size: int) -> None:
    """What the ranks leave where they met is taken back."""
    with connect(rank, world_size) as comm:
        for number in range(150):
            with comm.split(number % 3) as child:
                child.allreduce(np.ones(1), np.ones(1), nccl.SUM)


def test_a_hundred_splits() -> None:
    run_ranks(check_many, 2)


def test_ids_are_bytes() -> None:
    unique_id = UniqueId.from_bytes(bytes(range(128)))
    assert bytes(unique_id) == unique_id.as_bytes == bytes(range(128))
    assert pickle.loads(pickle.dumps(unique_id)) == unique_id
    assert unique_id != UniqueId()
    empty = get_unique_id(empty=True)
    assert empty.as_bytes == bytes(128)
    empty.as_ndarray[:] = unique_id.as_ndarray  # as MPI's Bcast does
    assert empty == unique_id
    for wrong in (b"", bytes(127), bytes(129)):
        refused(lambda w=wrong: UniqueId.from_bytes(w), "an id has 128 bytes, these are")
    with pytest.raises(TypeError, match="unhashable"):
        hash(unique_id)


def check_wrong_init(rank: int, world_size: int) -> None:
    good, empty = get_unique_id(), get_unique_id(empty=True)
    no_number = "rank must be an int, got str"
    cases = [
        (lambda: Communicator.init(2, 2, good), "rank 2 of 2 ranks; there are 0 to 1"),
        (lambda: Communicator.init(2, -1, good), "rank -1 of 2 ranks"),
        (lambda: Communicator.init(0, 0, good), "rank 0 of 0 ranks"),
        (lambda: Communicator.init(1, "0", good), no_number),  # type: ignore[arg-type]
        (lambda: Communicator.init(1, 0, bytes(good)), "must be a UniqueId, got bytes"),  # type: ignore[arg-type]
        (lambda: Communicator.init(1, 0, good, object()), "config must be None"),  # type: ignore[arg-type]
        (lambda: Communicator.init(1, 0, good, timeout=0), "timeout must be 1 ms or more, got 0"),
        (lambda: Communicator.init(1, 0, good, timeout=float("nan")), "got nan"),
        (lambda: Communicator.init(1, 0, good, device="gpu"), "device 'gpu' is none: "),
        (lambda: Communicator.init(1, 0, empty), "these 128 bytes are no unique id of this"),
    ]
    for call, words in cases:
        refused(call, words)
    with nccl.group():
        refused(lambda: Communicator.init(1, 0, good), "not between group_start and group_end")
    with pytest.raises(nccl.NcclUnsupported, match="300 ranks on one host"):
        Communicator.init(300, 0, get_unique_id(), timeout=5)
    comm = Communicator.init(1, 0, good, timeout=timedelta.max)  # "forever"
    with comm.split(0) as child:
        child.allreduce(np.ones(1), np.ones(1), nccl.SUM)
    refused(lambda: Communicator.init(1, 0, good), "has used this unique id already|no longer")
    comm.destroy()


def test_wrong_arguments_of_init() -> None:
    run_ranks(check_wrong_init, 1)


def check_used_id(rank: int, world_size: int) -> None:
    unique_id = shared_id(rank)
    comm = Communicator.init(world_size, rank, unique_id)
    refused(
        lambda: Communicator.init(world_size, rank, unique_id),
        f"rank {rank} has used this unique id already; one id makes one communicator",
    )
    dist.barrier()
    comm.destroy()
    with pytest.raises((dist.DistBackendError, nccl.NcclInvalid)):
        Communicator.init(world_size, rank, unique_id, timeout=5)


def test_an_id_is_used_once() -> None:
    run_ranks(check_used_id, 2)


def check_disagreement(rank: int, world_size: int) -> None:
    """Ranks that believe in different sizes, or to be the same rank."""
    unique_id = shared_id(rank)
    with pytest.raises(dist.DistBackendError, match=r"believes|gave up|had not come"):
        Communicator.init(2 + rank, rank, unique_id, timeout=3)
    unique_id = shared_id(rank)
    with pytest.raises((dist.DistBackendError, nccl.NcclInvalid), match=r"had not come|already"):
        Communicator.init(2, 1, unique_id, timeout=1)


def test_ranks_that_disagree_who_they_are() -> None:
    run_ranks(check_disagreement, 2)


def check_threads(rank: int, world_size: int) -> None:
    """Two communicators in two threads, and a call of each thread on one."""
    first, second = connect(rank, world_size), connect(rank, world_size)
    results = {}

    def work(comm: Communicator, name: str) -> None:
        x = np.ones(1000)
        for _ in range(200):
            comm.allreduce(x, x, nccl.AVG)
        results[name] = x

    threads = [
        threading.Thread(target=work, args=pair) for pair in ((first, "first"), (second, "second"))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((x == 1).all() for x in results.values())
    assert len(results) == 2
    dist.barrier()
    first.destroy()
    second.destroy()


def test_threads_may_use_communicators_at_once() -> None:
    run_ranks(check_threads, 2)


def test_torch_is_not_asked_for_a_group() -> None:
    """One rank of its own, in a process without any."""
    assert not dist.is_initialized()
    with Communicator.init(1, 0, get_unique_id()) as comm:
        x = torch.arange(3.0)
        comm.allreduce(x, x, nccl.SUM)
        assert x.tolist() == [0, 1, 2]
    assert not dist.is_initialized()
