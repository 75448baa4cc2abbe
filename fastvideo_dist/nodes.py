"""Which ranks share a host, measured: the same kernel, booted once, and the same process ids."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed import ProcessGroup

from fastvideo_dist.local import this_node
from fastvideo_dist.stateless_process_group import StatelessProcessGroup

__all__ = ["get_same_node_ranks", "is_the_same_node_as", "node_rank_sets"]


def get_same_node_ranks(
    pg: ProcessGroup | StatelessProcessGroup, source_rank: int = 0
) -> list[int]:
    """The ranks on the node of `source_rank`, itself among them. Collective over the group.

    Args:
        pg: any group that can gather objects.
        source_rank: rank in the group.

    Returns:
        Global ranks, ascending; of a stateless group its own ranks.

    Raises:
        ValueError: the group has no such rank.
    """
    nodes = _nodes_of(pg)
    if not 0 <= source_rank < len(nodes):
        raise ValueError(
            f"get_same_node_ranks: source_rank is {source_rank}; the group has ranks 0 to "
            f"{len(nodes) - 1}"
        )
    ranks = _global_ranks(pg)
    return [rank for rank, node in zip(ranks, nodes, strict=True) if node == nodes[source_rank]]


def is_the_same_node_as(
    pg: ProcessGroup | StatelessProcessGroup, source_rank: int = 0
) -> list[int]:
    """`get_same_node_ranks` by its older name: a list of ranks, no mask."""
    return get_same_node_ranks(pg, source_rank)


def node_rank_sets(pg: ProcessGroup | StatelessProcessGroup) -> list[list[int]]:
    """The ranks of each node, the node of the lowest rank first. Collective over the group.

    Nodes may have different numbers of ranks, and a node's ranks need not be consecutive.
    """
    sets: dict[str, list[int]] = {}
    for rank, node in zip(_global_ranks(pg), _nodes_of(pg), strict=True):
        sets.setdefault(node, []).append(rank)
    return list(sets.values())


def _nodes_of(pg: ProcessGroup | StatelessProcessGroup) -> list[str]:
    if isinstance(pg, StatelessProcessGroup):
        gathered: list[str] = pg.all_gather_obj(this_node())
        return gathered
    nodes = [""] * pg.size()
    dist.all_gather_object(nodes, this_node(), group=pg)
    return nodes


def _global_ranks(pg: ProcessGroup | StatelessProcessGroup) -> list[int]:
    if isinstance(pg, StatelessProcessGroup):
        return list(range(pg.world_size))
    return list(dist.get_process_group_ranks(pg))
