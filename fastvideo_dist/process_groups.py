"""c10d groups by their ranks: coordinators of the same ranks share one.

A group of the backend "fastvideo" serves CPU and CUDA tensors alike, so one of them is both the
device group and the CPU group of a coordinator. World, sequence and data parallel groups often
have the same ranks; they then hold the same group, counted, and the last one to let go destroys it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from fastvideo_dist._compat import extension

if TYPE_CHECKING:
    from fastvideo_dist._C import Options

__all__ = [
    "OURS",
    "SharedGroup",
    "acquire",
    "all_or_none",
    "backend_of",
    "check_peer",
    "check_rank",
    "default_group",
    "init_default_group",
    "is_alive",
    "release",
    "resolve_backend",
    "timeout_of",
]

OURS = "fastvideo"
_UPSTREAM_DEFAULT = "nccl"

_T = TypeVar("_T")

# Ranks, backend, timeout.
_Key = tuple[tuple[int, ...], str, "timedelta | None"]


@dataclass(eq=False)
class SharedGroup:
    """A c10d group this rank is in, and how many coordinators hold it."""

    group: ProcessGroup
    key: _Key
    is_default: bool  # torch.distributed's own; not ours to destroy
    holders: int = 0


# The youngest shared group of each key. Of one default group: the next one begins anew.
_shared: dict[_Key, SharedGroup] = {}
_made_under: ProcessGroup | None = None


def resolve_backend(backend: str) -> str:
    """The backend a name of FastVideo's API stands for, in lower case.

    "nccl" is the default of every signature there, whatever the machine; here it means this
    project's backend, which serves CPU and CUDA tensors. All other names mean what they say.
    """
    name = str(backend).lower()
    return OURS if name == _UPSTREAM_DEFAULT else name


def default_group(what: str) -> ProcessGroup:
    """torch.distributed's group of all ranks.

    Raises:
        RuntimeError: there is none (yet, or any more); `what` was attempted.
    """
    group = dist.group.WORLD
    if group is None:
        raise RuntimeError(
            f"{what}: torch.distributed is not initialised; call init_distributed_environment "
            "(or torch.distributed.init_process_group) first"
        )
    return group


def init_default_group(
    world_size: int,
    rank: int,
    init_method: str,
    backend: str,
    device_id: torch.device | None,
    timeout: timedelta | None,
) -> None:
    """torch.distributed's own group; see `parallel_state.init_distributed_environment`."""
    if not 0 <= rank < world_size:
        raise ValueError(
            f"init_distributed_environment: there is no rank {rank} of {world_size}; ranks are 0 "
            f"to {world_size - 1}"
        )
    alone = world_size == 1 and init_method == "env://" and "MASTER_ADDR" not in os.environ
    dist.init_process_group(
        backend,
        init_method=None if alone else init_method,
        store=dist.HashStore() if alone else None,  # type: ignore[attr-defined]
        world_size=world_size,
        rank=rank,
        timeout=timeout,
        # torch binds only to accelerators, and only to one that is named.
        device_id=device_id if device_id is not None and device_id.index is not None else None,
    )


def is_alive(group: ProcessGroup) -> bool:
    """Whether torch.distributed still knows the group."""
    return group in dist.distributed_c10d._world.pg_map


def backend_of(group: ProcessGroup) -> str:
    """The name the group was made with, such as "fastvideo" or "cpu:gloo,cuda:nccl"."""
    config = str(dist.distributed_c10d._world.pg_map[group][0]).lower()
    return config if config != "undefined" else dist.get_backend_config(group).lower()


def check_rank(what: str, rank: int, name: str, own_rank: int, world_size: int) -> None:
    """Raises ValueError if group `name` has no rank `rank`, of which `what` is said."""
    # A float that is whole would pass the comparison and fail far from here.
    if not (hasattr(rank, "__index__") and 0 <= rank < world_size):
        raise ValueError(
            f"{what} rank {rank} of group {name!r}, rank {own_rank}: it has ranks 0 to "
            f"{world_size - 1}"
        )


def check_peer(what: str, rank: int, name: str, own_rank: int, world_size: int) -> None:
    """As `check_rank`; also if it is this rank itself."""
    check_rank(what, rank, name, own_rank, world_size)
    if rank == own_rank:
        raise ValueError(f"{what} rank {rank} of group {name!r}: that is this rank itself")


def timeout_of(group: ProcessGroup) -> timedelta | None:
    """The timeout of the group's calls on CPU tensors; None if its backend does not say."""
    try:
        options = group._get_backend(torch.device("cpu")).options
    except RuntimeError:  # no backend for the CPU, or one without options
        return None
    timeout: timedelta | None = getattr(options, "_timeout", None)
    return timeout


def all_or_none(what: str, check: Callable[[], _T]) -> _T:
    """What `check` returns. Collective over all ranks of the default group.

    Raises:
        ValueError: on all ranks, if `check` raises one on any of them.
    """
    world = default_group(what)
    failure: ValueError | None = None
    try:
        result = check()
    except ValueError as error:
        failure = error
    refusals = _gather(world, "" if failure is None else str(failure))
    if failure is not None:
        raise failure
    for rank, words in enumerate(refusals):
        if words:
            raise ValueError(f"{what}: rank {rank} refuses: {words}")
    return result


def _gather(world: ProcessGroup, obj: _T) -> list[_T]:
    """By rank."""
    everyone = [obj] * world.size()
    if world.size() > 1:
        dist.all_gather_object(everyone, obj, group=world)
    return everyone


def acquire(
    rank_sets: Sequence[Sequence[int]],
    backend: str,
    timeout: timedelta | None,
    name: str,
    number: int = 0,
) -> tuple[SharedGroup | None, str]:
    """The group of the rank set this rank is in; made if its members do not share one already.

    Collective over all ranks of the default group, also over those in no set.

    Args:
        rank_sets: global ranks, ascending in each set; the same on all ranks.
        backend: as `resolve_backend` returns it.
        timeout: of every call on the group; None: that of the default group.
        name: for messages.
        number: from which on this rank has no "name:number" yet.

    Returns:
        The group, to be given to `release` once; None if this rank is in none of the sets. And
        "name:number" with the first number that is free on all ranks.

    Raises:
        ValueError: on all ranks alike: the sets are malformed, or the ranks want different groups.
        torch.distributed.DistBackendError: a rank died or did not come.
    """
    what = f"making the groups of {name}"
    world = default_group(what)
    sets = all_or_none(what, lambda: _checked(rank_sets, world.size(), name))
    _begin_anew_under(world)
    timeout = timeout or timeout_of(world)
    keys = [(ranks, backend, timeout) for ranks in sets]
    ours = _lookup(keys, world)
    known, number = _agree(keys, [ours.get(key) for key in keys], number, world, name)
    label = f"{name}:{number}"
    mine = None
    for key, is_known in zip(keys, known, strict=True):
        if not is_known:
            # All ranks make every group, in the same order: c10d names groups by counting them.
            group = dist.new_group(
                list(key[0]),
                timeout=timeout,
                backend=backend,
                pg_options=_described(label, timeout) if backend == OURS else None,
                group_desc=label,
            )
            if world.rank() in key[0]:
                ours[key] = _shared[key] = SharedGroup(group, key, is_default=False)
        if world.rank() in key[0]:
            mine = ours[key]
    if mine is not None:
        mine.holders += 1
    return mine, label


def _described(label: str, timeout: timedelta | None) -> Options:
    """torch itself tells a backend the description of its group when that is made already."""
    c = extension()
    options: Options = c.Options() if timeout is None else c.Options(timeout)
    options.group_desc = label
    return options


def release(shared: SharedGroup) -> None:
    """Lets go of a group. The last holder destroys it, unless it is the default group. Local."""
    shared.holders -= 1
    if shared.holders > 0:
        return
    if _shared.get(shared.key) is shared:
        del _shared[shared.key]
    if not shared.is_default and is_alive(shared.group):
        dist.destroy_process_group(shared.group)


def _checked(
    rank_sets: Sequence[Sequence[int]], world_size: int, label: str
) -> list[tuple[int, ...]]:
    sets = [tuple(int(rank) for rank in ranks) for ranks in rank_sets]
    everyone = [rank for ranks in sets for rank in ranks]
    for ranks in sets:
        if not ranks:
            raise ValueError(f"{label}: an empty group among {sets}")
        if outside := [rank for rank in ranks if not 0 <= rank < world_size]:
            raise ValueError(
                f"{label}: ranks {outside} of the group {list(ranks)} do not exist; there are "
                f"ranks 0 to {world_size - 1}"
            )
        if list(ranks) != sorted(set(ranks)):
            raise ValueError(
                f"{label}: the ranks of a group must ascend, as c10d numbers them so; got "
                f"{list(ranks)}"
            )
    if len(set(everyone)) != len(everyone):
        raise ValueError(f"{label}: a rank is in more than one of the groups {sets}")
    return sets


def _begin_anew_under(world: ProcessGroup) -> None:
    global _made_under
    if _made_under is not world:
        _shared.clear()
        _made_under = world


def _lookup(keys: list[_Key], world: ProcessGroup) -> dict[_Key, SharedGroup]:
    """What this rank shares already, of the keys it is in."""
    everyone = tuple(range(world.size()))
    found = {}
    for key in keys:
        if (known := _shared.get(key)) is not None and is_alive(known.group):
            found[key] = known
        elif key == (everyone, backend_of(world), timeout_of(world)):
            found[key] = _shared[key] = SharedGroup(world, key, is_default=True)
    return found


def _agree(
    keys: list[_Key],
    known: list[SharedGroup | None],
    number: int,
    world: ProcessGroup,
    name: str,
) -> tuple[list[bool], int]:
    """Of each key, whether all its members hold the same group; raises if the keys differ.

    And the highest of all ranks' numbers.
    """
    held = [shared.group.group_name if shared else "" for shared in known]
    plans = _gather(world, (keys, held, number))
    for rank, (theirs, _, _) in enumerate(plans):
        if theirs != plans[0][0]:
            raise ValueError(
                f"{name}: the ranks want different groups. Rank 0: {_describe(plans[0][0])}; "
                f"rank {rank}: {_describe(theirs)}. Every rank must give the same sizes, backend "
                "and timeout"
            )
    agreed = []
    for index, (ranks, _, _) in enumerate(keys):
        groups = {plans[rank][1][index] for rank in ranks}
        agreed.append(len(groups) == 1 and groups != {""})
    return agreed, max(number for _, _, number in plans)


def _describe(keys: list[_Key]) -> str:
    _, backend, timeout = keys[0] if keys else ((), "no", None)
    return f"{[list(ranks) for ranks, _, _ in keys]}, backend {backend!r}, timeout {timeout}"
