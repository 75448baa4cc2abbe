"""What an op has to be told about a group, and how its messages begin."""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist

__all__ = ["GroupFacts", "Site", "facts", "member"]


class Site(NamedTuple):
    """Which call is being checked, for messages; `rank` is None where an op does not know it."""

    operation: str
    group: str
    rank: int | None

    def __str__(self) -> str:
        where = "" if self.rank is None else f", rank {self.rank}"
        return f'fastvideo: {self.operation} on group "{self.group}"{where}'


class GroupFacts(NamedTuple):
    """What can stand in a compiled graph: plain words and numbers."""

    name: str
    size: int
    rank: int

    def site(self, operation: str) -> Site:
        return Site(operation, self.name, self.rank)


def facts(operation: str, group: dist.ProcessGroup | None) -> GroupFacts:
    """Of `group`, or of the default group; raises as `member` does."""
    group = member(operation, group)
    return GroupFacts(group.group_name, group.size(), group.rank())


def member(operation: str, group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """`group`, or the default group.

    Raises:
        ValueError: there is none, or this rank is not in it.
    """
    if group is None:
        group = dist.group.WORLD
        if group is None:
            raise ValueError(
                f"fastvideo: {operation}: there is no default group; call init_process_group "
                "first, or give a group"
            )
    if not isinstance(group, dist.ProcessGroup):
        raise ValueError(
            f"fastvideo: {operation}: group is {group!r}, which is what new_group returns on a "
            "rank that is not in the group; only its members may call"
        )
    return group
