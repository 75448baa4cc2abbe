"""`replace_fastvideo()`: FastVideo's imports of its distributed layer find this package.

A finder in front of all others answers for `fastvideo.distributed` and every name below it with
the module of the same name here, the very same object: state, classes and patches are shared
between both spellings. FastVideo's own files of that layer are never loaded, not even for a name
that is missing here, because two layers with groups of their own in one process would hang.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["REPLACED", "replace_fastvideo"]

REPLACED = "fastvideo.distributed"
_PARENT = "fastvideo"
_OURS = "fastvideo_dist"

# Set for the processes that this one starts; read in _fastvideo_dist_autoload.py.
_VARIABLE = "FASTVIDEO_DIST_REPLACE_FASTVIDEO"

# What code may look up in sys.modules without having imported it.
_MODULES = (
    "utils",
    "parallel_state",
    "communication_op",
    "device_communicators",
    "device_communicators.base_device_communicator",
    "device_communicators.cpu_communicator",
    "device_communicators.cuda_communicator",
    "device_communicators.pynccl",
    "device_communicators.pynccl_wrapper",
)


def replace_fastvideo() -> None:
    """Makes `fastvideo.distributed` and all below it mean this package, before they are imported.

    In this process, and in all that it starts from now on, with any start method: the environment
    tells them, when they import torch. Calling it again does nothing.

    FastVideo need not be installed. Without it there is an empty package `fastvideo`, for code that
    uses this layer of it alone; with it nothing of FastVideo is imported here.

    Raises:
        RuntimeError: FastVideo's own layer was imported already; the message names its modules.
        ImportError: this package's extension does not load.
    """
    install()
    for name in _MODULES:
        importlib.import_module(f"{_OURS}.{name}")
    if importlib.util.find_spec(_PARENT) is _EmptyParent.spec:
        for name in (REPLACED, *(f"{REPLACED}.{name}" for name in _MODULES)):
            importlib.import_module(name)
    os.environ[_VARIABLE] = "1"


def install() -> None:
    """The part that needs no torch and loads nothing: the finder.

    Raises:
        RuntimeError: as `replace_fastvideo`.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    foreign = sorted(
        name for name in sys.modules if name == REPLACED or name.startswith(f"{REPLACED}.")
    )
    if foreign:
        raise RuntimeError(
            f"replace_fastvideo() comes too late: {', '.join(foreign[:3])} of FastVideo were "
            "imported already; call it before the first import of fastvideo"
        )
    sys.meta_path.insert(0, _Finder())
    sys.meta_path.append(_EmptyParent())


class _Finder(MetaPathFinder):
    """Answers for the replaced names alone."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != REPLACED and not fullname.startswith(f"{REPLACED}."):
            return None
        ours = _OURS + fullname[len(REPLACED) :]
        if importlib.util.find_spec(ours) is None:
            raise ModuleNotFoundError(
                f"{fullname} is replaced by {_OURS}, which has no module {ours}", name=fullname
            )
        return ModuleSpec(fullname, _Alias(ours))


class _EmptyParent(MetaPathFinder):
    """Comes last: there is a package `fastvideo` even if nobody has installed one."""

    spec = ModuleSpec(_PARENT, None, is_package=True)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return self.spec if fullname == _PARENT else None


class _Alias(Loader):
    """Loads a module by handing out another one, which stays as it is."""

    def __init__(self, ours: str) -> None:
        self._ours = ours
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._ours)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has put the alias's spec there; the module's own tells the truth.
        module.__spec__ = self._spec
