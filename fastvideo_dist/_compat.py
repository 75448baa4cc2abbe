"""Everything in Python that depends on the version of torch.

That is first of all whether the extension, compiled against one minor version, can be loaded into
the torch that is running: c10d::Backend has no stable binary interface.
"""

from __future__ import annotations

import importlib
import operator
import sys
from collections.abc import Callable, Sequence
from functools import cache, wraps
from types import ModuleType
from typing import Any

import torch
from torch._library.effects import EffectType

__all__ = ["extension", "keep_in_order", "mend_inductor", "mend_partitioner"]

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
        core = importlib.import_module("fastvideo_dist._C")
    except ImportError as error:
        raise ImportError(f"{versions}, and loading it failed: {error}.{_REBUILD}") from error
    _add_kernels(core, getattr(built, "NO_KERNELS", "it was built before there were any"))
    return core


def _add_kernels(core: ModuleType, missing: str) -> None:
    """Hands the kernels for GPUs to `_C`, or why there are none: a call in need of them says it."""
    if missing:
        core.use_kernels(None, f"it was built without them, since {missing}")
        return
    try:
        core.use_kernels(importlib.import_module("fastvideo_dist._C_cuda").KERNELS)
    except ImportError as error:
        core.use_kernels(None, f"loading them failed: {error}")


def keep_in_order(op: str) -> None:
    """Tells torch's compilers that calls of `op` ("namespace::name") are seen from outside: none
    may be left out or made one with another, nor two of them change places.

    Two equal calls would else be merged and unused ones removed, on the ranks where that shows.
    """
    register = torch.library._register_effectful_op
    register(op, EffectType.ORDERED)


def mend_inductor(ops: Sequence[torch._ops.OpOverload[Any, Any]]) -> None:
    """Has Inductor keep the order that `keep_in_order` asks for, which it loses before torch 2.15.

    There its scheduler looks up what must precede an operation under the operation's name, but the
    lowering of ordered ops wrote it down under the name of the buffer; so a call nobody on this
    rank uses the result of comes last, and the ranks disagree.

    To be called while a call is traced: Inductor, if it is what comes next, is loaded by then, and
    nobody else pays for loading it.
    """
    inductor = sys.modules.get("torch._inductor.lowering")
    if inductor is None or torch.__version__ >= torch.torch_version.TorchVersion("2.15"):
        return
    for op in ops:
        if op not in inductor.lowerings:
            inductor.lowerings[op] = _lowering_in_order(op, inductor)


def mend_partitioner(ops: Sequence[torch._ops.OpOverload[Any, Any]]) -> None:
    """Has a checkpoint within a compiled function keep what `ops` return, and recompute the rest.

    An op that `keep_in_order` names cannot be recomputed: what keeps its order would go from the
    forward to the backward pass, and nothing can. The partitioner would keep its results, but for
    the mark that a checkpoint leaves on all it contains; so that is not seen here.

    To be called while a call is traced, as mend_inductor.
    """
    partitioners: Any = sys.modules.get("torch._functorch.partitioners")
    if partitioners is None or hasattr(partitioners.must_recompute, "__wrapped__"):
        return
    must_recompute = partitioners.must_recompute
    in_order = torch.ops.higher_order.with_effects

    @wraps(must_recompute)
    def unless_in_order(node: torch.fx.Node) -> bool:
        call: Any = node
        while call.target is operator.getitem:  # the call gives a pair, or that of a list
            call = call.args[0]
        kept = call.target is in_order and call.args[1] in ops
        return not kept and must_recompute(node)

    partitioners.must_recompute = unless_in_order


def _lowering_in_order(op: torch._ops.OpOverload[Any, Any], inductor: Any) -> Callable[..., Any]:
    """What Inductor does without a lowering, and the dependency under the right name."""
    ir, virtualized = inductor.ir, inductor.V

    def box(node: Any) -> Any:
        if not isinstance(node, ir.IRNode):
            return node
        if hasattr(node, "wrap_for_lowering"):  # from torch 2.12
            return node.wrap_for_lowering()
        return ir.TensorBox.create(node)

    def lower(*args: Any, **kwargs: Any) -> Any:
        graph = virtualized.graph
        before = len(graph.operations)
        result = torch.utils._pytree.tree_map(box, ir.FallbackKernel.create(op, *args, **kwargs))
        previous = graph.effectful_ops.get(EffectType.ORDERED)
        if previous is not None:
            for operation in graph.operations[before:]:
                name = operation.get_operation_name()
                graph.additional_buffer_deps[name].add(previous.get_name())
        return result

    return lower


def _minor(version: str) -> tuple[str, ...]:
    """("2", "12") of "2.12.0+cu130"."""
    return tuple(version.split(".")[:2])
