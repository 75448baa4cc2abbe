"""Makes the backend object of one group out of what torch.distributed hands over."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import TYPE_CHECKING

from torch.distributed.constants import default_pg_timeout

# For torch.ops.fastvideo_dist: torch.compile cannot trace an op without its fake kernel.
import fastvideo_dist.ops  # noqa: F401
from fastvideo_dist._compat import extension

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend, _DistributedBackendOptions

    from fastvideo_dist._C import Options

__all__ = ["create_backend"]


def create_backend(group: _DistributedBackendOptions, options: object) -> Backend:
    """The backend of this rank in a new group. Collective over the ranks of the group.

    Args:
        group: store, rank, size, timeout, name and members, from torch.distributed.
        options: `pg_options` of the caller, `fastvideo_dist.Options` or None. It is copied, as one
            object may serve many groups.

    Raises:
        TypeError: `options` is of another type.
        ValueError: two different timeouts are asked for.
        ImportError: the extension does not load; see `_compat.extension`.
        torch.distributed.DistBackendError: the ranks did not come together.
    """
    c = extension()
    mine = _copy_options(c.Options, options)
    mine._timeout = _agreed_timeout(group.group_id, group.timeout, mine._timeout)
    mine.group_name = group.group_id
    # torch leaves the list empty for the group of all ranks.
    mine.global_ranks_in_group = list(group.global_ranks_in_group) or list(range(group.group_size))
    backend: Backend = c.FastVideoBackend(group.store, group.group_rank, group.group_size, mine)
    return backend


def _copy_options(options_type: type[Options], options: object) -> Options:
    if options is None:
        return options_type()
    if not isinstance(options, options_type):
        raise TypeError(
            f"pg_options is a {type(options).__module__}.{type(options).__qualname__}; the backend "
            f'"fastvideo" takes fastvideo_dist.Options or None'
        )
    return copy.copy(options)


def _agreed_timeout(group: str, argument: timedelta, option: timedelta) -> timedelta:
    """The one of two timeouts that somebody chose: the default says that nobody did."""
    if option in (argument, default_pg_timeout):
        return argument
    if argument == default_pg_timeout:
        return option
    raise ValueError(
        f'group "{group}": the argument timeout is {argument}, pg_options says {option}; give one '
        "of them, or the same to both"
    )
