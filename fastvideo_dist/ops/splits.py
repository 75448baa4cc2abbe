"""How a size is divided over ranks, and the checks of everything that does so.

Sizes may be symbols of a compiler: what can be computed without a question is.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastvideo_dist.ops.groups import Site

__all__ = ["check_dims_4d", "check_sizes", "split_sizes", "wrapped_dim"]


def split_sizes(size: int, ranks: int) -> list[int]:
    """The sizes of `ranks` parts of `size`, as `torch.tensor_split` cuts: the first ones are larger
    by one where they cannot be equal.

    Raises:
        ValueError: `ranks` is below 1.
    """
    if ranks < 1:
        raise ValueError(f"split_sizes: a size cannot be divided over {ranks} ranks")
    return [(size + ranks - 1 - rank) // ranks for rank in range(ranks)]


def wrapped_dim(site: Site, x: Tensor, dim: int) -> int:
    """`dim` counted from the front."""
    if not -x.dim() <= dim < x.dim():
        raise ValueError(
            f"{site}: dim is {dim} but x has {x.dim()} dimensions, shape {list(x.shape)}"
        )
    return dim % x.dim()


def check_dims_4d(site: Site, x: Tensor, scatter_dim: int, gather_dim: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"{site}: x must have 4 dimensions, got shape {list(x.shape)}")
    if not (0 <= scatter_dim < 4 and 0 <= gather_dim < 4):
        raise ValueError(
            f"{site}: scatter_dim and gather_dim must be 0 to 3, got {scatter_dim} and {gather_dim}"
        )
    if scatter_dim == gather_dim:
        raise ValueError(f"{site}: scatter_dim and gather_dim must differ, both are {gather_dim}")


def check_sizes(site: Site, sizes: Sequence[int], total: int, ranks: int, what: str) -> None:
    """`sizes` are one per rank and add up to `total`."""
    if len(sizes) != ranks:
        raise ValueError(
            f"{site}: {what} are {list(sizes)}, {len(sizes)} numbers for {ranks} ranks"
        )
    if any(size < 0 for size in sizes) or sum(sizes) != total:
        raise ValueError(
            f"{site}: {what} {list(sizes)} add up to {sum(sizes)} but the size is {total}"
        )
