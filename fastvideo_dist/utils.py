"""FastVideo's small helpers: dividing, splitting and padding tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvideo_dist.stateless_process_group import StatelessProcessGroup

__all__ = [
    "StatelessProcessGroup",
    "compute_padding_for_sp",
    "divide",
    "ensure_divisibility",
    "pad_sequence_tensor",
    "split_tensor_along_last_dim",
    "unpad_sequence_tensor",
]


def ensure_divisibility(numerator: int, denominator: int) -> None:
    """Raises ValueError, naming both, unless `denominator` divides `numerator`."""
    if denominator == 0 or numerator % denominator != 0:
        raise ValueError(f"{numerator} is not divisible by {denominator}")


def divide(numerator: int, denominator: int) -> int:
    """`numerator / denominator`, which must be whole; see `ensure_divisibility`."""
    ensure_divisibility(numerator, denominator)
    return numerator // denominator


def split_tensor_along_last_dim(
    tensor: Tensor, num_partitions: int, contiguous_split_chunks: bool = False
) -> Sequence[Tensor]:
    """Equal parts of the last dimension: views, or contiguous tensors if asked for.

    Raises:
        ValueError: there is no last dimension, or its size is no multiple of `num_partitions`.
    """
    if tensor.dim() == 0:
        raise ValueError("split_tensor_along_last_dim: a tensor without dimensions has no last one")
    chunks = torch.split(tensor, divide(tensor.size(-1), num_partitions), dim=-1)
    return tuple(chunk.contiguous() for chunk in chunks) if contiguous_split_chunks else chunks


def compute_padding_for_sp(seq_len: int, sp_world_size: int) -> tuple[int, int]:
    """The next multiple of `sp_world_size` from `seq_len` up, and how much that adds."""
    if sp_world_size <= 0 or seq_len < 0:
        raise ValueError(
            f"compute_padding_for_sp: a sequence of {seq_len} cannot be padded for "
            f"{sp_world_size} ranks"
        )
    padding = -seq_len % sp_world_size
    return seq_len + padding, padding


def pad_sequence_tensor(
    tensor: Tensor, target_seq_len: int, seq_dim: int = 1, pad_value: float = 0.0
) -> Tensor:
    """Appends `pad_value` along `seq_dim` up to `target_seq_len`. Differentiable.

    Returns:
        The tensor itself if it is as long already, or longer.
    """
    dim = _checked_dim("pad_sequence_tensor", tensor, seq_dim)
    missing = target_seq_len - tensor.size(dim)
    if missing <= 0:
        return tensor
    # torch wants (before, after) of each dimension, the last one first.
    after = [0, 0] * (tensor.dim() - dim - 1) + [0, missing]
    return torch.nn.functional.pad(tensor, after, value=pad_value)


def unpad_sequence_tensor(tensor: Tensor, original_seq_len: int, seq_dim: int = 1) -> Tensor:
    """A view of the first `original_seq_len` along `seq_dim`.

    Raises:
        ValueError: there are not so many.
    """
    dim = _checked_dim("unpad_sequence_tensor", tensor, seq_dim)
    if not 0 <= original_seq_len <= tensor.size(dim):
        raise ValueError(
            f"unpad_sequence_tensor: {original_seq_len} asked for, but dimension {seq_dim} of "
            f"shape {list(tensor.shape)} has {tensor.size(dim)}"
        )
    return tensor.narrow(dim, 0, original_seq_len)


def _checked_dim(what: str, tensor: Tensor, dim: int) -> int:
    if not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(f"{what}: shape {list(tensor.shape)} has no dimension {dim}")
    return dim % tensor.dim()
