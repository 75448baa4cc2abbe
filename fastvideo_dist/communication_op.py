"""FastVideo's calls on the tensor and sequence parallel groups.

All are collective over the group, differentiable, and return the tensor itself with one rank.
Names are looked up here at the time of the call, so replacing one in this module has an effect.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvideo_dist.parallel_state import (
    get_sp_group,
    get_sp_world_size,
    get_tp_group,
    model_parallel_is_initialized,
)
from fastvideo_dist.utils import compute_padding_for_sp, pad_sequence_tensor, unpad_sequence_tensor

__all__ = [
    "sequence_model_parallel_all_gather",
    "sequence_model_parallel_all_gather_with_unpad",
    "sequence_model_parallel_all_to_all_4D",
    "sequence_model_parallel_shard",
    "tensor_model_parallel_all_gather",
    "tensor_model_parallel_all_reduce",
    "warmup_sequence_parallel_communication",
]


def tensor_model_parallel_all_reduce(input_: torch.Tensor) -> torch.Tensor:
    """The sum over the tensor parallel group, in a new tensor."""
    return get_tp_group().all_reduce(input_)


def tensor_model_parallel_all_gather(input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The tensors of the tensor parallel group, joined along `dim`."""
    return get_tp_group().all_gather(input_, dim)


def sequence_model_parallel_all_to_all_4D(  # noqa: N802  (FastVideo's name)
    input_: torch.Tensor,
    scatter_dim: int = 2,
    gather_dim: int = 1,
    *,
    scatter_sizes: Sequence[int] | None = None,
    gather_sizes: Sequence[int] | None = None,
) -> torch.Tensor:
    """`[B, S/W, H, D]` to `[B, S, H/W, D]`, or with (1, 2) back, over the sequence group.

    Args:
        scatter_sizes: what each rank gets along `scatter_dim`; None: equal parts.
        gather_sizes: what each rank has along `gather_dim`; None: as this one.
    """
    group = get_sp_group()
    if scatter_sizes is None and gather_sizes is None:
        return group.all_to_all_4D(input_, scatter_dim, gather_dim)  # all that a stand-in may know
    return group.all_to_all_4D(
        input_, scatter_dim, gather_dim, scatter_sizes=scatter_sizes, gather_sizes=gather_sizes
    )


def sequence_model_parallel_all_gather(input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The tensors of the sequence parallel group, joined along `dim`."""
    return get_sp_group().all_gather(input_, dim)


def sequence_model_parallel_all_gather_with_unpad(
    input_: torch.Tensor, original_seq_len: int, dim: int = -1
) -> torch.Tensor:
    """As `sequence_model_parallel_all_gather`, without what `sequence_model_parallel_shard` padded.

    Args:
        original_seq_len: the whole tensor's size along `dim`, as the shard call returned it.
    """
    gathered = get_sp_group().all_gather(input_, dim)
    if gathered.size(dim) <= original_seq_len:
        return gathered
    return unpad_sequence_tensor(gathered, original_seq_len, seq_dim=dim)


def sequence_model_parallel_shard(input_: torch.Tensor, dim: int = 1) -> tuple[torch.Tensor, int]:
    """This rank's part of `dim`, which is first padded with zeros to a multiple of the ranks.

    Backward gathers the gradients of all parts and divides them by the number of ranks, as all
    ranks of the group then compute the same loss.

    Returns:
        The part, contiguous, and the size of `dim` before padding.
    """
    size = input_.size(dim)
    padded, missing = compute_padding_for_sp(size, get_sp_world_size())
    if missing:
        input_ = pad_sequence_tensor(input_, padded, seq_dim=dim)
    return get_sp_group().shard(input_, dim=dim, scale_grad=True), size


def warmup_sequence_parallel_communication(device: torch.device | None = None) -> None:
    """Makes the calls of an attention layer once, so that the first real one finds all memory set.

    Does nothing before the groups are made, with one rank, or a second time for the same group.

    Args:
        device: of the tensors; None: the group's.
    """
    if not model_parallel_is_initialized() or get_sp_world_size() == 1:
        return
    group = get_sp_group()
    if getattr(group, "_is_warm", False):
        return
    ranks = get_sp_world_size()
    place = group.device if device is None else device
    q: Tensor = torch.zeros(1, 16, 4 * ranks, 64, device=place, dtype=torch.bfloat16)
    heads = sequence_model_parallel_all_to_all_4D(q, scatter_dim=2, gather_dim=1)
    sequence_model_parallel_all_to_all_4D(heads, scatter_dim=1, gather_dim=2)
    sequence_model_parallel_all_gather(heads, dim=2)
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    group._is_warm = True
