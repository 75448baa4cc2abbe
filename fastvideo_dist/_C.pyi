"""The extension module, from csrc/module.cpp."""

from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import Backend, Store

class Options(Backend.Options):
    """Settings of one group. May be copied, deep-copied and pickled.

    Given as `pg_options`, it is copied, so one object may serve several groups.
    """

    def __init__(self, timeout: timedelta = ...) -> None: ...

    timeout: timedelta
    """Of every call that gives none itself; above 0. 30 minutes if not given."""

    group_name: str  # type: ignore[assignment]
    """For messages and the rendezvous; the same on all ranks."""

    group_desc: str
    """For messages, before the name; may be empty."""

    global_ranks_in_group: list[int]
    """For messages: the rank in the world of each rank in the group; empty if the same."""

class FastVideoBackend(Backend):
    """One rank's side of one group. Its collectives are those of torch.distributed.

    The constructor is collective over the group and blocks until all ranks have come. Dropping the
    object is like shutdown().

    Raises:
        ValueError: a rank outside the group, or options that contradict each other.
        torch.distributed.DistBackendError: not all ranks came, or they cannot share memory.
    """

    def __init__(self, store: Store, rank: int, size: int, options: Options) -> None: ...
    @property
    def options(self) -> Options: ...

    bound_device_id: torch.device | None

    def get_error(self) -> Any:
        """SUCCESS while the group is usable, as far as this rank knows; else TIMEOUT, REMOTE_ERROR
        (a rank died) or COMM_ERROR. `torch._C._distributed_c10d.ErrorType`."""

    def _wait_for_pending_works(self) -> None: ...
    def perform_nocolor_split(self, device: torch.device) -> None:
        """Does nothing: there is no parent communicator that would have to know of a split."""

    def register_mem_pool(self, *args: object, **kwargs: object) -> None:
        """Raises RuntimeError: comes with the NCCL transport."""

    def deregister_mem_pool(self, *args: object, **kwargs: object) -> None:
        """Raises RuntimeError: comes with the NCCL transport."""

def build_info() -> dict[str, Any]:
    """What it was compiled with: torch, compiler, cplusplus, transports."""
