"""Groups: their layout, their life, and what is refused."""

from __future__ import annotations

import ast
import datetime
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

import harness
from fastvideo_dist import group_coordinator, nodes, process_groups
from fastvideo_dist import parallel_state as ps
from harness import run_ranks
from layer.jobs import fails, job

WORLDS = pytest.mark.parametrize("world_size", [1, 2, 3, 4])


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def check_layout(rank: int, world_size: int) -> None:
    ps.init_distributed_environment(world_size, rank)
    assert ps.get_world_group().ranks == ps.get_node_group().ranks == list(range(world_size))
    assert (ps.get_world_size(), ps.get_world_rank()) == (world_size, rank)
    for tp in divisors(world_size):
        for sp in divisors(world_size):
            ps.initialize_model_parallel(tp, sp, data_parallel_size=world_size // sp)
            assert ps.model_parallel_is_initialized()
            assert ps.get_tp_group().ranks == list(range(rank // tp * tp, rank // tp * tp + tp))
            assert ps.get_sp_group().ranks == list(range(rank // sp * sp, rank // sp * sp + sp))
            assert ps.get_dp_group().ranks == list(range(rank % sp, world_size, sp))
            assert (ps.get_tp_world_size(), ps.get_tp_rank()) == (tp, rank % tp)
            assert (ps.get_sp_world_size(), ps.get_sp_parallel_rank()) == (sp, rank % sp)
            assert (ps.get_dp_world_size(), ps.get_dp_rank()) == (world_size // sp, rank // sp)
            check_neighbours(ps.get_sp_group(), rank)
            ps._destroy_model_groups()
            assert not ps.model_parallel_is_initialized()
    ps.cleanup_dist_env_and_memory()
    assert not dist.is_initialized()


def check_neighbours(group: ps.GroupCoordinator, rank: int) -> None:
    ranks = group.ranks
    assert (group.rank, ranks[group.rank_in_group]) == (rank, rank)
    assert (group.first_rank, group.last_rank) == (ranks[0], ranks[-1])
    assert (group.is_first_rank, group.is_last_rank) == (rank == ranks[0], rank == ranks[-1])
    assert group.next_rank == ranks[(ranks.index(rank) + 1) % len(ranks)]
    assert group.prev_rank == ranks[(ranks.index(rank) - 1) % len(ranks)]
    assert group.unique_name == "sp:0"


@WORLDS
def test_layout(world_size: int) -> None:
    run_ranks(check_layout, world_size)


def check_sizes(rank: int, world_size: int) -> None:
    ps.init_distributed_environment(world_size, rank)
    with fails(ValueError, "sequence_model_parallel_size is 3", "world size 4"):
        ps.initialize_model_parallel(1, 3)
    with fails(ValueError, "tensor_model_parallel_size is 0", "world size 4"):
        ps.initialize_model_parallel(0, 1)
    with fails(ValueError, "data_parallel_size is 4", "leaves 2"):
        ps.initialize_model_parallel(1, 2, 4)
    with fails(ValueError, "sp group of 3", "world size 4"):
        ps.initialize_sequence_parallel_group(3)
    with fails(ValueError, "[9]", "ranks 0 to 3"):
        ps.init_model_parallel_group([[0, 1], [2, 9]], 0, "nccl")
    with fails(ValueError, "more than one"):
        ps.init_model_parallel_group([[0, 1], [1, 2, 3]], 0, "nccl")
    with fails(ValueError, "ascend"):
        ps.init_model_parallel_group([[1, 0], [2, 3]], 0, "nccl")
    with fails(ValueError, "empty"):
        ps.init_model_parallel_group([[0, 1, 2, 3], []], 0, "nccl")
    # FastVideo ends here in a bare assertion on rank 3, and the others hang.
    if rank == 3:
        with fails(ValueError, "rank 3 of 4 is in none", "[[0, 1, 2]]"):
            ps.init_model_parallel_group([[0, 1, 2]], 0, "nccl")
    else:
        ps.init_model_parallel_group([[0, 1, 2]], 0, "nccl").destroy()
    # One rank's mistake is told to all, before anything is waited for.
    with fails(ValueError, "sequence_model_parallel_size is 3"):
        ps.initialize_model_parallel(1, 4 if rank else 3)
    with fails(ValueError, "sp group of 3"):
        ps.initialize_sequence_parallel_group(3 if rank == 1 else 2)
    with fails(ValueError, "more than one"):
        ps.init_model_parallel_group([[0, 1], [1, 2, 3] if rank == 2 else [2, 3]], 0, "nccl")
    with fails(ValueError, "want different groups"):
        ps.init_model_parallel_group([[0, 1, 2, 3]] if rank else [[0, 1], [2, 3]], 0, "nccl")
    assert not ps.model_parallel_is_initialized()
    ps.initialize_model_parallel(2, 4)
    with fails(RuntimeError, "size 2 and sequence parallel size 2", "exist with 2 and 4"):
        ps.initialize_model_parallel(2, 2)
    with fails(RuntimeError, "exist with 2 and 4"):
        ps.maybe_init_distributed_environment_and_model_parallel(4, 4)
    ps.initialize_model_parallel(2, 4)
    with fails(ValueError, "rank 0 of 2", f"rank {rank} of 4"):
        ps.init_distributed_environment(2, 0)
    ps.init_distributed_environment(world_size, rank)
    ps.cleanup_dist_env_and_memory()


def test_sizes_that_do_not_fit_are_refused_on_all_ranks() -> None:
    run_ranks(check_sizes, 4)


GETTERS = [
    *("get_world_group", "get_node_group", "get_tp_group", "get_sp_group", "get_dp_group"),
    *("get_world_size", "get_world_rank", "get_tp_world_size", "get_tp_rank", "get_dp_rank"),
    *("get_sp_world_size", "get_sp_parallel_rank", "get_dp_world_size"),
]


@pytest.mark.parametrize("getter", GETTERS)
def test_before_init(getter: str) -> None:
    with pytest.raises(RuntimeError, match=r"not initialised.*call init"):
        getattr(ps, getter)()


def test_other_calls_before_init() -> None:
    assert not ps.model_parallel_is_initialized()
    with pytest.raises(RuntimeError, match="call init_distributed_environment"):
        ps.initialize_model_parallel()
    with pytest.raises(RuntimeError, match="call init_distributed_environment"):
        ps.init_world_group([0], 0, "nccl")
    with pytest.raises(ValueError, match="no group 'tp:0'"):
        ps.all_reduce(torch.ones(1), "tp:0")
    with pytest.raises(ValueError, match="no rank 2 of 2"):
        ps.init_distributed_environment(2, 2)
    # Nothing is left to destroy, and that is no error.
    ps.destroy_model_parallel()
    ps.destroy_distributed_environment()
    ps.cleanup_dist_env_and_memory(shutdown_ray=True)


def check_after_destroy(rank: int, world_size: int) -> None:
    with job(rank, world_size, tp=world_size):
        group, world = ps.get_sp_group(), ps.get_world_group()
        x = torch.ones(2, 2, 2, 2)
    for one in (group, world):
        check_refusals(one, x, rank)
    assert not process_groups._shared


def check_refusals(one: ps.GroupCoordinator, x: torch.Tensor, rank: int) -> None:
    one.destroy()  # twice is the same as once
    assert not one.is_usable
    assert one.device_group is None
    assert "destroyed" in repr(one)
    for call in (
        lambda: one.all_reduce(x),
        lambda: one.all_gather(x),
        lambda: one.all_to_all_4D(x),
        lambda: one.broadcast(x),
        lambda: one.broadcast_object(1),
        lambda: one.broadcast_tensor_dict({}),
        lambda: one.gather(x),
        lambda: one.shard(x, scale_grad=True),
        one.barrier,
    ):
        with fails(RuntimeError, "destroyed", f"rank {rank}"):
            call()


@pytest.mark.parametrize("world_size", [1, 2])
def test_after_destroy(world_size: int) -> None:
    run_ranks(check_after_destroy, world_size)


def check_sharing(rank: int, world_size: int) -> None:
    """FastVideo makes two groups for each of its five, though their ranks are the same."""
    with job(rank, world_size, tp=world_size):
        groups = [ps.get_world_group(), ps.get_node_group(), ps.get_tp_group(), ps.get_sp_group()]
        assert all(g.device_group is g.cpu_group is dist.group.WORLD for g in groups)
        one = ps.initialize_sequence_parallel_group(1, group_name_suffix="one")
        assert one.device_group is ps.get_dp_group().device_group
        further = ps.init_model_parallel_group([list(range(world_size))], 0, "gloo")
        assert further.device_group is not dist.group.WORLD
        again = ps.init_model_parallel_group([list(range(world_size))], 0, "gloo")
        assert again.device_group is further.device_group
        again.destroy()
        assert process_groups.is_alive(further.device_group)
        group = further.device_group
        further.destroy()
        assert not process_groups.is_alive(group)
        long = ps.init_model_parallel_group(
            [list(range(world_size))], 0, "nccl", timeout=datetime.timedelta(seconds=77)
        )
        assert process_groups.timeout_of(long.device_group) == datetime.timedelta(seconds=77)
        assert long.timeout == datetime.timedelta(seconds=77)
        long.destroy()
    assert not process_groups._shared


@pytest.mark.parametrize("world_size", [2, 3])
def test_equal_ranks_share_one_group(world_size: int) -> None:
    run_ranks(check_sharing, world_size)


def check_real_groups(rank: int, world_size: int) -> None:
    """torch.distributed takes the coordinator's groups for its own."""
    with job(rank, world_size, sp=2):
        for coordinator in (ps.get_world_group(), ps.get_sp_group(), ps.get_dp_group()):
            group = coordinator.device_group
            x = torch.full((3,), float(coordinator.rank_in_group))
            source = dist.get_global_rank(group, 0)
            dist.broadcast(x, src=source, async_op=True, group=group).wait()
            assert (x == 0).all()
            dist.all_reduce(x.add_(1), group=group)
            assert (x == coordinator.world_size).all()
            mesh = DeviceMesh.from_group(group, "cpu")
            assert mesh.size() == coordinator.world_size
            assert process_groups.backend_of(group) == harness.BACKEND
        assert ps._NODE is not None
        dist.barrier()


def test_torch_takes_the_groups() -> None:
    run_ranks(check_real_groups, 4)


def check_patching(rank: int, world_size: int) -> None:
    with job(rank, world_size, tp=1):
        before = ps.get_tp_group()
        draft = ps.initialize_tensor_parallel_group(world_size, group_name_suffix="draft")
        assert draft.unique_name == "tp_draft:0"
        with ps.patch_tensor_parallel_group(draft):
            assert ps.get_tp_group() is draft
            assert ps.get_tp_world_size() == world_size
            with fails(RuntimeError, "patched already"), ps.patch_tensor_parallel_group(before):
                pass
        assert ps.get_tp_group() is before
        y = ps.all_reduce(torch.ones(3), "tp_draft:0")
        assert (y == world_size).all()
        assert ps.all_reduce_fake(y, "tp_draft:0").shape == y.shape
        draft.destroy()
        with fails(ValueError, "no group 'tp_draft:0'", "sp:0"):
            ps.all_reduce(y, "tp_draft:0")


def test_patching_the_tensor_parallel_group() -> None:
    run_ranks(check_patching, 2)


def test_assigned_groups_are_returned_as_they_are() -> None:
    """FastVideo's own tests put objects of their own there."""
    with mock.patch.multiple(ps, _WORLD=1, _TP="tp", _SP=[3], _DP=None, _NODE=2.5):
        found = [ps.get_world_group(), ps.get_tp_group(), ps.get_sp_group(), ps.get_node_group()]
        assert found == [1, "tp", [3], 2.5]
        assert not ps.model_parallel_is_initialized()


def check_environment(rank: int, world_size: int) -> None:
    with mock.patch.dict(
        os.environ, RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank)
    ):
        ps.maybe_init_distributed_environment_and_model_parallel(1, world_size)
        ps.maybe_init_distributed_environment_and_model_parallel(1, world_size)
        assert ps.get_world_group().local_rank == rank
        assert ps.get_world_group().device == ps.get_local_torch_device()
        assert ps.get_sp_world_size() == world_size
        ps.cleanup_dist_env_and_memory()


@WORLDS
def test_maybe_init(world_size: int) -> None:
    run_ranks(check_environment, world_size)


def test_one_process_needs_no_address() -> None:
    ps.maybe_init_distributed_environment_and_model_parallel(1, 1)
    try:
        assert dist.get_backend() == "fastvideo"
        assert ps.get_world_size() == 1
    finally:
        ps.cleanup_dist_env_and_memory()
    assert not dist.is_initialized()


def test_the_cpu_is_the_device_without_an_accelerator() -> None:
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert ps.get_local_torch_device() == torch.device("cpu")


def check_nodes(rank: int, world_size: int) -> None:
    """Ranks 0 and 2 are told that they are on another node than 1 and 3."""
    with mock.patch.object(nodes, "this_node", return_value=f"node {rank % 2}"):
        ps.init_distributed_environment(world_size, rank)
        assert ps.get_node_group().ranks == [rank % 2, rank % 2 + 2]
        world = ps.get_world_group().cpu_group
        assert ps.is_the_same_node_as(world) == [0, 2]
        assert ps.get_same_node_ranks(world, source_rank=3) == [1, 3]
        pair = ps.init_model_parallel_group([[0, 1], [2, 3]], 0, "nccl")
        assert ps.is_the_same_node_as(pair.cpu_group, 1) == [pair.ranks[1]]
        with fails(ValueError, "source_rank is 5", "0 to 3"):
            ps.is_the_same_node_as(world, 5)
        ps.cleanup_dist_env_and_memory()


def test_nodes_are_measured() -> None:
    run_ranks(check_nodes, 4)


def check_arguments(rank: int, world_size: int) -> None:
    """FastVideo ignores both."""
    ps.init_distributed_environment(
        world_size, rank, local_rank=3, backend="gloo", device_id=torch.device("meta")
    )
    group = ps.get_world_group()
    assert process_groups.backend_of(group.device_group) == "gloo"
    assert group.device == ps.get_node_group().device == torch.device("meta")
    assert (group.local_rank, ps.get_node_group().local_rank) == (3, 3)
    ps.initialize_model_parallel(backend="fastvideo")
    assert process_groups.backend_of(ps.get_dp_group().device_group) == "fastvideo"
    left_by_the_user = ps.initialize_sequence_parallel_group(world_size)
    left_by_the_user.broadcast_object(1)
    ps.cleanup_dist_env_and_memory()
    # FastVideo leaves five entries here, four of them dead.
    assert not group_coordinator._groups
    assert not left_by_the_user.is_usable


def test_arguments_are_honoured() -> None:
    run_ranks(check_arguments, 2)


def test_there_are_no_asserts_in_the_package() -> None:
    """`python -O` removes them."""
    for path in Path(ps.__file__).parent.rglob("*.py"):
        nodes_of_file = ast.walk(ast.parse(path.read_text()))
        assert not any(isinstance(node, ast.Assert) for node in nodes_of_file), path


def check_forgotten(rank: int, world_size: int) -> None:
    """Somebody destroyed torch.distributed under the groups, and begins again."""
    ps.init_distributed_environment(world_size, rank)
    ps.initialize_model_parallel(1, world_size)
    old = ps.get_sp_group()
    dist.destroy_process_group()
    assert not old.is_usable
    store = dist.HashStore()
    ps._forget_dead_groups()
    assert ps._WORLD is None
    dist.init_process_group("fastvideo", store=store, rank=0, world_size=1)
    ps.init_distributed_environment()
    ps.initialize_model_parallel()
    assert ps.get_sp_world_size() == 1
    ps.cleanup_dist_env_and_memory()


def test_groups_of_a_destroyed_environment_are_forgotten() -> None:
    run_ranks(check_forgotten, 2)
