"""Makes `init_process_group("fastvideo")` work without an import.

torch loads this module by an entry point: up to 2.13 at the end of every `import torch`, later when
the backend is first asked for. It stands outside the package because loading an entry point imports
all parents of the module it names: here there are none, so nothing of the package, and above all
not its extension, can slow down or break an `import torch`.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Backend, _DistributedBackendOptions

BACKEND = "fastvideo"


def autoload() -> None:
    """Entry point of the group `torch.backends`.

    Never raises: an exception would end `import torch` for everybody who shares the environment.
    """
    try:
        register()
    except Exception:
        logging.getLogger("fastvideo_dist").debug("backend not registered", exc_info=True)
    try:
        if os.environ.get("FASTVIDEO_DIST_REPLACE_FASTVIDEO") == "1":
            _replace_fastvideo()
    except Exception as error:
        # Aloud, whatever the process does with its logs and warnings: the parent replaced the
        # layer, and two of them in one job would hang.
        print(
            f"fastvideo_dist: fastvideo.distributed is not replaced in process {os.getpid()}, "
            f"though its parent asked for it: {error}. Import torch before it",
            file=sys.stderr,
        )


def _replace_fastvideo() -> None:
    """In a child of a process that called replace_fastvideo(): only the finder, nothing loaded."""
    from fastvideo_dist.replace import install  # noqa: PLC0415

    install()


def register() -> None:
    """Makes the backend's name known to torch.distributed; once, however often it is called.

    Raises:
        RuntimeError: this torch was built without torch.distributed.
    """
    # Here and not above: on the way from an entry point torch is still being imported.
    import torch.distributed as dist  # noqa: PLC0415

    if not dist.is_available():
        raise RuntimeError(
            "fastvideo_dist cannot register its backend: this torch was built without "
            "torch.distributed; install one that has it"
        )
    if BACKEND.upper() in dist.Backend._plugins:
        return
    dist.Backend.register_backend(
        BACKEND, _create_backend, extended_api=True, devices=["cpu", "cuda"]
    )


def _create_backend(group: _DistributedBackendOptions, options: object) -> Backend:
    """Called by torch.distributed for each new group, and the first to load the extension."""
    from fastvideo_dist._register import create_backend  # noqa: PLC0415

    return create_backend(group, options)
