"""Everything in Python that depends on the version of torch.

That is first of all whether the extension, compiled against one minor version, can be loaded into
the torch that is running: c10d::Backend has no stable binary interface.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch

__all__ = ["extension"]

_REBUILD = """
Compile it against the torch that is running:
    pip install --no-build-isolation --force-reinstall --no-deps fastvideo-dist
or, from a checkout of its sources:
    pip install --no-build-isolation ."""


@cache
def extension() -> ModuleType:
    """The module `_C`, loaded at the first call.

    Raises:
        ImportError: it was never compiled, or for another minor version of torch, or does not load;
            the message names both versions and the command that helps.
    """
    try:
        built = importlib.import_module("fastvideo_dist._build_info")
    except ModuleNotFoundError:
        raise ImportError(
            "fastvideo_dist._C was not compiled: this is the source folder, not an installed "
            f"package ({__file__}).{_REBUILD}"
        ) from None
    versions = (
        f"fastvideo_dist._C was compiled for torch {built.TORCH} (CUDA {built.CUDA}, Python "
        f"{built.PYTHON}), running is torch {torch.__version__} (CUDA {torch.version.cuda})"
    )
    if _minor(built.TORCH) != _minor(torch.__version__):
        raise ImportError(f"{versions}. The minor versions must be the same.{_REBUILD}")
    try:
        return importlib.import_module("fastvideo_dist._C")
    except ImportError as error:
        raise ImportError(f"{versions}, and loading it failed: {error}.{_REBUILD}") from error


def _minor(version: str) -> tuple[str, ...]:
    """("2", "12") of "2.12.0+cu130"."""
    return tuple(version.split(".")[:2])
