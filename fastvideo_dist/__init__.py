"""A torch.distributed backend for the ranks of one host, and ops for sequence parallelism.

The import registers the backend (an installed package does not even need it) and loads nothing
heavy: the extension comes with the first group, or with the first of the names below.
"""

from __future__ import annotations

import importlib
import logging
from importlib.metadata import version
from typing import TYPE_CHECKING

from _fastvideo_dist_autoload import register

if TYPE_CHECKING:
    from fastvideo_dist import ops
    from fastvideo_dist._C import Options
    from fastvideo_dist.ops import all_to_all_4d

__all__ = ["Options", "all_to_all_4d", "ops", "register"]

_HOMES = {"Options": "fastvideo_dist._C", "all_to_all_4d": "fastvideo_dist.ops"}

logging.getLogger(__name__).addHandler(logging.NullHandler())
register()


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("fastvideo-dist")
    if name == "ops":
        return importlib.import_module("fastvideo_dist.ops")
    if name == "Options":
        # Not by _HOMES alone: an extension that does not load deserves an explanation.
        return importlib.import_module("fastvideo_dist._compat").extension().Options
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
