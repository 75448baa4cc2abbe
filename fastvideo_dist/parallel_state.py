"""FastVideo's parallel state: the groups of this process, made, looked up and destroyed.

    init_distributed_environment(world_size, rank)     world, node
    initialize_model_parallel(2, 2)                    tensor, sequence, data parallel
    get_sp_group().all_to_all_4D(q)
    cleanup_dist_env_and_memory()

`maybe_init_distributed_environment_and_model_parallel` does the first two from the variables that
torchrun sets. The groups stand in `_WORLD`, `_NODE`, `_TP`, `_SP` and `_DP`, which may be read and
assigned; the getters return whatever stands there.

With W ranks, tensor and sequence parallel groups are consecutive ranks, and data parallel groups
take every `sequence_model_parallel_size`-th (rank_layout.py):

    W = 4, tp = 2, sp = 2:   TP {0 1} {2 3}   SP {0 1} {2 3}   DP {0 2} {1 3}

over 400 lines because FastVideo's code reads and assigns the groups as globals of one module.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastvideo_dist import process_groups
from fastvideo_dist.group_coordinator import (
    GraphCaptureContext,
    GroupCoordinator,
    destroy_groups,
    find_group,
)
from fastvideo_dist.local import get_local_torch_device, local_rank_from_environment
from fastvideo_dist.nodes import get_same_node_ranks, is_the_same_node_as, node_rank_sets
from fastvideo_dist.rank_layout import check_sizes, consecutive, strided
from fastvideo_dist.tensor_dict import TensorMetadata

if TYPE_CHECKING:
    from typing import NoReturn

__all__ = [
    "GraphCaptureContext",
    "GroupCoordinator",
    "TensorMetadata",
    "all_reduce",
    "all_reduce_fake",
    "cleanup_dist_env_and_memory",
    "destroy_distributed_environment",
    "destroy_model_parallel",
    "get_dp_group",
    "get_dp_rank",
    "get_dp_world_size",
    "get_local_torch_device",
    "get_node_group",
    "get_same_node_ranks",
    "get_sp_group",
    "get_sp_parallel_rank",
    "get_sp_world_size",
    "get_tp_group",
    "get_tp_rank",
    "get_tp_world_size",
    "get_world_group",
    "get_world_rank",
    "get_world_size",
    "graph_capture",
    "init_distributed_environment",
    "init_model_parallel_group",
    "init_node_group",
    "init_world_group",
    "initialize_model_parallel",
    "initialize_sequence_parallel_group",
    "initialize_tensor_parallel_group",
    "is_the_same_node_as",
    "maybe_init_distributed_environment_and_model_parallel",
    "model_parallel_is_initialized",
    "patch_tensor_parallel_group",
    "set_custom_all_reduce",
]

logger = logging.getLogger(__name__)

_WORLD: GroupCoordinator | None = None
_NODE: GroupCoordinator | None = None
_TP: GroupCoordinator | None = None
_SP: GroupCoordinator | None = None
_DP: GroupCoordinator | None = None

_TP_STATE_PATCHED = False
_ENABLE_CUSTOM_ALL_REDUCE = True


# ---- looking up ---------------------------------------------------------------------------------


def get_world_group() -> GroupCoordinator:
    """All ranks. Each getter raises RuntimeError before its group is made and after its end."""
    if _WORLD is None:
        _missing("world", "init_distributed_environment")
    return _WORLD


def get_node_group() -> GroupCoordinator:
    """The ranks on this rank's node."""
    if _NODE is None:
        _missing("node", "init_distributed_environment")
    return _NODE


def get_tp_group() -> GroupCoordinator:
    """The tensor parallel group."""
    if _TP is None:
        _missing("tensor parallel", "initialize_model_parallel")
    return _TP


def get_sp_group() -> GroupCoordinator:
    """The sequence parallel group."""
    if _SP is None:
        _missing("sequence parallel", "initialize_model_parallel")
    return _SP


def get_dp_group() -> GroupCoordinator:
    """The data parallel group."""
    if _DP is None:
        _missing("data parallel", "initialize_model_parallel")
    return _DP


def _missing(group: str, maker: str) -> NoReturn:
    raise RuntimeError(f"the {group} group is not initialised (any more); call {maker} first")


def get_world_size() -> int:
    return get_world_group().world_size


def get_world_rank() -> int:
    return get_world_group().rank


def get_tp_world_size() -> int:
    return get_tp_group().world_size


def get_tp_rank() -> int:
    """This rank's place in its tensor parallel group."""
    return get_tp_group().rank_in_group


def get_sp_world_size() -> int:
    return get_sp_group().world_size


def get_sp_parallel_rank() -> int:
    """This rank's place in its sequence parallel group."""
    return get_sp_group().rank_in_group


def get_dp_world_size() -> int:
    return get_dp_group().world_size


def get_dp_rank() -> int:
    """This rank's place in its data parallel group."""
    return get_dp_group().rank_in_group


def model_parallel_is_initialized() -> bool:
    """Whether there are tensor, sequence and data parallel groups."""
    return _TP is not None and _SP is not None and _DP is not None


# ---- the environment ----------------------------------------------------------------------------


def init_distributed_environment(
    world_size: int = 1,
    rank: int = 0,
    distributed_init_method: str = "env://",
    local_rank: int = 0,
    backend: str = "nccl",
    device_id: torch.device | None = None,
    *,
    timeout: timedelta | None = None,
) -> None:
    """Initialises torch.distributed if nobody has, and makes the world and node groups.

    Collective over all ranks. Again with the same sizes it does nothing.

    Args:
        world_size: number of ranks; 1 is also right if torch.distributed is initialised already.
        rank: of this process, 0 to `world_size - 1`.
        distributed_init_method: as `init_process_group` takes it. With one rank and no
            MASTER_ADDR in the environment, "env://" needs no address.
        local_rank: on the host; -1: LOCAL_RANK, or with another method than "env://" `rank`.
        backend: of all groups; "nccl", FastVideo's default, stands for this project's.
        device_id: of this rank's tensors; None: `get_local_torch_device()`.
        timeout: of every call on every group; None: torch.distributed's default.

    Raises:
        ValueError: `rank` is no rank, or torch.distributed has other sizes.
        RuntimeError: the groups exist and have another size.
        torch.distributed.DistBackendError: not all ranks came.
    """
    global _WORLD, _NODE
    _forget_dead_groups()
    backend = process_groups.resolve_backend(backend)
    if not dist.is_initialized():
        process_groups.init_default_group(
            world_size, rank, distributed_init_method, backend, device_id, timeout
        )
    elif world_size != 1 and (world_size, rank) != (dist.get_world_size(), dist.get_rank()):
        raise ValueError(
            f"init_distributed_environment as rank {rank} of {world_size}: torch.distributed is "
            f"initialised already, and this is rank {dist.get_rank()} of {dist.get_world_size()}"
        )
    if local_rank == -1:
        from_environment = distributed_init_method == "env://"
        local_rank = local_rank_from_environment() if from_environment else rank
    if _WORLD is None:
        _WORLD = _coordinator(
            [list(range(dist.get_world_size()))], local_rank, backend, False, "world", timeout,
            device_id,
        )  # fmt: skip
    elif _WORLD.world_size != dist.get_world_size():
        raise RuntimeError(
            f"init_distributed_environment: the world group has {_WORLD.world_size} ranks, "
            f"torch.distributed has {dist.get_world_size()}; call cleanup_dist_env_and_memory "
            "before initialising again"
        )
    if _NODE is None:
        _NODE = init_node_group(local_rank, backend)


def _forget_dead_groups() -> None:
    """After a destroy_process_group() by somebody else there is nothing left to use."""
    global _WORLD, _NODE, _TP, _SP, _DP
    if isinstance(_WORLD, GroupCoordinator) and not _WORLD.is_usable:
        logger.warning("the groups of an earlier environment were not destroyed; forgetting them")
        dead = [_TP, _SP, _DP, _NODE, _WORLD]
        _WORLD = _NODE = _TP = _SP = _DP = None
        for group in dead:
            _destroy(group)


def init_world_group(
    ranks: list[int], local_rank: int, backend: str, *, timeout: timedelta | None = None
) -> GroupCoordinator:
    """A group of these ranks, which must be all, named "world". Collective over all ranks."""
    return _coordinator([ranks], local_rank, backend, False, "world", timeout)


def init_node_group(
    local_rank: int, backend: str, *, timeout: timedelta | None = None
) -> GroupCoordinator:
    """The group of this rank's node, as measured. Collective over all ranks."""
    sets = node_rank_sets(get_world_group().cpu_group)
    return _coordinator(sets, local_rank, backend, False, "node", timeout)


def init_model_parallel_group(
    group_ranks: list[list[int]],
    local_rank: int,
    backend: str,
    use_message_queue_broadcaster: bool = False,
    group_name: str | None = None,
    *,
    timeout: timedelta | None = None,
) -> GroupCoordinator:
    """The group this rank is in, of these. Collective over all ranks; see `GroupCoordinator`.

    Args:
        timeout: None: that of the world group.
    """
    return _coordinator(
        group_ranks, local_rank, backend, use_message_queue_broadcaster, group_name, timeout
    )


def _coordinator(
    group_ranks: list[list[int]],
    local_rank: int,
    backend: str,
    queue: bool,
    name: str | None,
    timeout: timedelta | None,
    device: torch.device | None = None,
) -> GroupCoordinator:
    if isinstance(_WORLD, GroupCoordinator):
        timeout = timeout or _WORLD.timeout
        device = device or _WORLD.device
    return GroupCoordinator(
        group_ranks, local_rank, backend, True, queue, name, timeout=timeout, device=device
    )


# ---- model parallel groups ----------------------------------------------------------------------


def initialize_model_parallel(
    tensor_model_parallel_size: int = 1,
    sequence_model_parallel_size: int = 1,
    data_parallel_size: int = 1,
    backend: str | None = None,
    *,
    timeout: timedelta | None = None,
) -> None:
    """Makes the tensor, sequence and data parallel groups. Collective over all ranks.

    Again with the same sizes it does nothing.

    Args:
        tensor_model_parallel_size: divides the number of ranks.
        sequence_model_parallel_size: divides the number of ranks.
        data_parallel_size: 1, or what is left: the number of ranks divided by the size of a
            sequence parallel group. A data parallel group has this size either way.
        backend: None: that of the world group.
        timeout: of every call on these groups; None: that of the world group.

    Raises:
        ValueError: sizes that do not fit the number of ranks.
        RuntimeError: no world group, or these groups exist with other sizes.
    """
    global _TP, _SP, _DP
    world = get_world_group()
    tp, sp = tensor_model_parallel_size, sequence_model_parallel_size

    def check() -> None:
        check_sizes(world.world_size, tp, sp, data_parallel_size)

    if _TP is not None or _SP is not None or _DP is not None:
        check()
        _check_existing(tp, sp)
        return
    process_groups.all_or_none("initialize_model_parallel", check)
    backend = backend or process_groups.backend_of(world.device_group)
    try:
        _TP = _coordinator(
            consecutive(world.world_size, tp), world.local_rank, backend, True, "tp", timeout
        )
        _SP = _coordinator(
            consecutive(world.world_size, sp), world.local_rank, backend, False, "sp", timeout
        )
        _DP = _coordinator(
            strided(world.world_size, sp),
            world.local_rank, backend, False, "dp", timeout,
        )  # fmt: skip
    except BaseException:
        _destroy_model_groups()
        raise


def _check_existing(tp: int, sp: int) -> None:
    if _TP is None or _SP is None or _DP is None:
        raise RuntimeError(
            "initialize_model_parallel: some of the groups exist and some do not; call "
            "destroy_model_parallel first"
        )
    if (get_tp_world_size(), get_sp_world_size()) != (tp, sp):
        raise RuntimeError(
            f"model parallel groups of tensor parallel size {tp} and sequence parallel size {sp} "
            f"are asked for, but they exist with {get_tp_world_size()} and {get_sp_world_size()}; "
            "call destroy_model_parallel first"
        )


def maybe_init_distributed_environment_and_model_parallel(
    tp_size: int,
    sp_size: int,
    distributed_init_method: str = "env://",
    *,
    timeout: timedelta | None = None,
) -> None:
    """All groups, unless they exist. Takes RANK, WORLD_SIZE and LOCAL_RANK of the environment.

    Collective over all ranks. Selects the CUDA device LOCAL_RANK where CUDA is available.

    Raises:
        RuntimeError: the groups exist with other sizes.
        ValueError: sizes that do not fit the number of ranks.
    """
    _forget_dead_groups()
    if _WORLD is not None and model_parallel_is_initialized():
        _check_existing(tp_size, sp_size)
        return
    device = get_local_torch_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    init_distributed_environment(
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        rank=int(os.environ.get("RANK", "0")),
        distributed_init_method=distributed_init_method,
        local_rank=local_rank_from_environment(),
        device_id=device,
        timeout=timeout,
    )
    initialize_model_parallel(tp_size, sp_size, timeout=timeout)


def initialize_tensor_parallel_group(
    tensor_model_parallel_size: int = 1,
    backend: str | None = None,
    group_name_suffix: str = "",
    *,
    timeout: timedelta | None = None,
) -> GroupCoordinator:
    """A tensor parallel group beside the first, for `patch_tensor_parallel_group`. Collective.

    Raises:
        ValueError: the size does not divide the number of ranks.
    """
    return _further_group(
        "tp", tensor_model_parallel_size, backend, group_name_suffix, True, timeout
    )


def initialize_sequence_parallel_group(
    sequence_model_parallel_size: int = 1,
    backend: str | None = None,
    group_name_suffix: str = "",
    *,
    timeout: timedelta | None = None,
) -> GroupCoordinator:
    """A sequence parallel group beside the first; the caller keeps and destroys it. Collective.

    Raises:
        ValueError: the size does not divide the number of ranks.
    """
    return _further_group(
        "sp", sequence_model_parallel_size, backend, group_name_suffix, False, timeout
    )


def _further_group(
    kind: str, size: int, backend: str | None, suffix: str, queue: bool, timeout: timedelta | None
) -> GroupCoordinator:
    world = get_world_group()

    def layout() -> list[list[int]]:
        if size < 1 or world.world_size % size:
            raise ValueError(
                f"a {kind} group of {size} ranks does not divide the world size {world.world_size}"
            )
        return consecutive(world.world_size, size)

    return _coordinator(
        process_groups.all_or_none(f"making a further {kind} group", layout),
        world.local_rank,
        backend or process_groups.backend_of(world.device_group),
        queue,
        f"{kind}_{suffix}" if suffix else kind,
        timeout,
    )


@contextlib.contextmanager
def patch_tensor_parallel_group(tp_group: GroupCoordinator) -> Iterator[None]:
    """Makes `tp_group` the tensor parallel group while the block runs.

    Raises:
        RuntimeError: inside another such block, or there is no tensor parallel group to replace.
    """
    global _TP, _TP_STATE_PATCHED
    if _TP_STATE_PATCHED:
        raise RuntimeError("patch_tensor_parallel_group: the group is patched already")
    before = get_tp_group()
    _TP_STATE_PATCHED = True
    _TP = tp_group
    try:
        yield
    finally:
        _TP_STATE_PATCHED = False
        _TP = before


@contextlib.contextmanager
def graph_capture(device: torch.device | None = None) -> Iterator[GraphCaptureContext]:
    """Captures on one stream for the tensor and the sequence parallel group.

    Args:
        device: of the stream; None: the current one. Without CUDA there is no stream.
    """
    stream = torch.cuda.Stream(device) if torch.cuda.is_available() else None  # type: ignore[no-untyped-call]
    context = GraphCaptureContext(stream)
    with get_tp_group().graph_capture(context), get_sp_group().graph_capture(context):
        yield context


# ---- the end ------------------------------------------------------------------------------------


def destroy_model_parallel() -> None:
    """Destroys all groups but the world; nothing if there are none. Local."""
    global _NODE
    _destroy_model_groups()
    node, _NODE = _NODE, None
    _destroy(node)


def _destroy_model_groups() -> None:
    global _TP, _SP, _DP
    groups = (_TP, _SP, _DP)
    _TP = _SP = _DP = None
    for group in groups:
        _destroy(group)


def destroy_distributed_environment() -> None:
    """Destroys the world group, all that is left of others, and torch.distributed's. Local.

    Nothing if there are none.
    """
    global _WORLD
    world, _WORLD = _WORLD, None
    _destroy(world)
    destroy_groups()
    if dist.is_initialized():
        dist.destroy_process_group()


def cleanup_dist_env_and_memory(shutdown_ray: bool = False) -> None:
    """Destroys all groups and frees memory that is no longer used.

    Args:
        shutdown_ray: shut down Ray too, if this process has imported it.
    """
    destroy_model_parallel()
    destroy_distributed_environment()
    ray: Any = sys.modules.get("ray")
    if shutdown_ray and ray is not None:
        ray.shutdown()
    # Modules wrapped for FSDP are cycles: only the collector frees their parameters.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _destroy(group: Any) -> None:
    """Of whatever was assigned: tests put objects here that cannot be destroyed."""
    destroy = getattr(group, "destroy", None)
    if destroy is not None:
        destroy()


# ---- ops by name --------------------------------------------------------------------------------


def all_reduce(tensor: Tensor, group_name: str) -> Tensor:
    """The sum over the ranks of the coordinator with this `unique_name`, such as "tp:0"."""
    return find_group(group_name).all_reduce(tensor)


def all_reduce_fake(tensor: Tensor, group_name: str) -> Tensor:
    """What `all_reduce` returns, for a compiler: the shape and dtype, without a value."""
    return torch.empty_like(tensor)


def set_custom_all_reduce(enable: bool) -> None:
    """Remembers the wish, as FastVideo does; there is one all_reduce, and it is always used."""
    global _ENABLE_CUSTOM_ALL_REDUCE
    _ENABLE_CUSTOM_ALL_REDUCE = enable
