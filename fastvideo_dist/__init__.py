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
    from fastvideo_dist import nccl, ops
    from fastvideo_dist._C import Options
    from fastvideo_dist.communication_op import (
        sequence_model_parallel_all_gather,
        sequence_model_parallel_all_gather_with_unpad,
        sequence_model_parallel_all_to_all_4D,
        sequence_model_parallel_shard,
        tensor_model_parallel_all_gather,
        tensor_model_parallel_all_reduce,
        warmup_sequence_parallel_communication,
    )
    from fastvideo_dist.ops import all_to_all_4d
    from fastvideo_dist.parallel_state import (
        GraphCaptureContext,
        GroupCoordinator,
        TensorMetadata,
        cleanup_dist_env_and_memory,
        destroy_distributed_environment,
        destroy_model_parallel,
        get_dp_group,
        get_dp_rank,
        get_dp_world_size,
        get_local_torch_device,
        get_node_group,
        get_sp_group,
        get_sp_parallel_rank,
        get_sp_world_size,
        get_tp_group,
        get_tp_rank,
        get_tp_world_size,
        get_world_group,
        get_world_rank,
        get_world_size,
        init_distributed_environment,
        initialize_model_parallel,
        maybe_init_distributed_environment_and_model_parallel,
        model_parallel_is_initialized,
    )
    from fastvideo_dist.replace import replace_fastvideo
    from fastvideo_dist.utils import (
        StatelessProcessGroup,
        compute_padding_for_sp,
        divide,
        ensure_divisibility,
        pad_sequence_tensor,
        split_tensor_along_last_dim,
        unpad_sequence_tensor,
    )

__all__ = [
    "GraphCaptureContext",
    "GroupCoordinator",
    "Options",
    "StatelessProcessGroup",
    "TensorMetadata",
    "all_to_all_4d",
    "cleanup_dist_env_and_memory",
    "compute_padding_for_sp",
    "destroy_distributed_environment",
    "destroy_model_parallel",
    "divide",
    "ensure_divisibility",
    "get_dp_group",
    "get_dp_rank",
    "get_dp_world_size",
    "get_local_torch_device",
    "get_node_group",
    "get_sp_group",
    "get_sp_parallel_rank",
    "get_sp_world_size",
    "get_tp_group",
    "get_tp_rank",
    "get_tp_world_size",
    "get_world_group",
    "get_world_rank",
    "get_world_size",
    "init_distributed_environment",
    "initialize_model_parallel",
    "maybe_init_distributed_environment_and_model_parallel",
    "model_parallel_is_initialized",
    "nccl",
    "ops",
    "pad_sequence_tensor",
    "register",
    "replace_fastvideo",
    "sequence_model_parallel_all_gather",
    "sequence_model_parallel_all_gather_with_unpad",
    "sequence_model_parallel_all_to_all_4D",
    "sequence_model_parallel_shard",
    "split_tensor_along_last_dim",
    "tensor_model_parallel_all_gather",
    "tensor_model_parallel_all_reduce",
    "unpad_sequence_tensor",
    "warmup_sequence_parallel_communication",
]

# FastVideo's package of this layer exports these names; they come from where it defines them.
_FROM = {
    "fastvideo_dist.communication_op": (
        "sequence_model_parallel_all_gather",
        "sequence_model_parallel_all_gather_with_unpad",
        "sequence_model_parallel_all_to_all_4D",
        "sequence_model_parallel_shard",
        "tensor_model_parallel_all_gather",
        "tensor_model_parallel_all_reduce",
        "warmup_sequence_parallel_communication",
    ),
    "fastvideo_dist.ops": ("all_to_all_4d",),
    "fastvideo_dist.parallel_state": (
        "GraphCaptureContext",
        "GroupCoordinator",
        "TensorMetadata",
        "cleanup_dist_env_and_memory",
        "destroy_distributed_environment",
        "destroy_model_parallel",
        "get_dp_group",
        "get_dp_rank",
        "get_dp_world_size",
        "get_local_torch_device",
        "get_node_group",
        "get_sp_group",
        "get_sp_parallel_rank",
        "get_sp_world_size",
        "get_tp_group",
        "get_tp_rank",
        "get_tp_world_size",
        "get_world_group",
        "get_world_rank",
        "get_world_size",
        "init_distributed_environment",
        "initialize_model_parallel",
        "maybe_init_distributed_environment_and_model_parallel",
        "model_parallel_is_initialized",
    ),
    "fastvideo_dist.replace": ("replace_fastvideo",),
    "fastvideo_dist.utils": (
        "StatelessProcessGroup",
        "compute_padding_for_sp",
        "divide",
        "ensure_divisibility",
        "pad_sequence_tensor",
        "split_tensor_along_last_dim",
        "unpad_sequence_tensor",
    ),
}
_MODULES = ("communication_op", "message_queue", "nccl", "ops", "parallel_state", "utils")
_HOMES = {name: module for module, names in _FROM.items() for name in names}

logging.getLogger(__name__).addHandler(logging.NullHandler())
register()


def __getattr__(name: str) -> object:
    if name == "__version__":
        return version("fastvideo-dist")
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "Options":
        # Not by _HOMES alone: an extension that does not load deserves an explanation.
        return importlib.import_module("fastvideo_dist._compat").extension().Options
    if name in _HOMES:
        found: object = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = found  # the next look-up does not come here
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
