"""One rank's collectives on tensors, over a c10d group: what all devices have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from fastvideo_dist import ops
from fastvideo_dist.agreement import described
from fastvideo_dist.device_communicators.distributed_autograd import DistributedAutograd, apply
from fastvideo_dist.messages import Messenger
from fastvideo_dist.process_groups import OURS, backend_of, check_peer, check_rank

__all__ = ["DeviceCommunicatorBase", "DistributedAutograd"]

_OP_NAMES = ("sum", "avg", "product", "min", "max", "band", "bor", "bxor")


def op_name(op: ReduceOp | ReduceOp.RedOpType | None, site: str) -> str:
    """How the ops spell a reduction. None is a sum.

    Args:
        site: of the call, for the message.

    Raises:
        ValueError: one that takes a factor, or no reduction at all.
    """
    if op is None:
        return "sum"
    # By its name: torch.compile can neither compare nor hash these objects.
    name = op.name.lower() if isinstance(op, ReduceOp.RedOpType) else _name_of(op)
    if name not in _OP_NAMES:
        raise ValueError(f"{site}: the reduction {op!r} is none of {', '.join(_OP_NAMES)}")
    return name


def _name_of(op: Any) -> str:
    """Of a `ReduceOp`, which stands around one of the named ones."""
    names = ReduceOp.RedOpType.__members__
    return next((name.lower() for name, known in names.items() if op == known), "")


class DeviceCommunicatorBase:
    """Collectives over one group, differentiable where they compute or move a tensor for a model.

    Tensors: any strides; every dtype where data is only moved. Nothing is in place: results are
    new contiguous tensors. Ranks in arguments are ranks in the group. Each collective must be
    called by every rank of the group, in the same order.

    Raises, from each call:
        ValueError: an argument is wrong; nothing was sent, and the group stays usable.
        NotImplementedError: no transport for tensors of this device.
        torch.distributed.DistBackendError: ranks disagree, or a rank died; the group is broken.
    """

    def __init__(
        self,
        cpu_group: ProcessGroup,
        device: torch.device | None = None,
        device_group: ProcessGroup | None = None,
        unique_name: str = "",
    ) -> None:
        self.device = device or torch.device("cpu")
        self.cpu_group = cpu_group
        self.device_group = device_group
        self.unique_name = unique_name
        self.rank = dist.get_rank(cpu_group)
        self.world_size = dist.get_world_size(cpu_group)
        self.ranks = dist.get_process_group_ranks(cpu_group)
        self.global_rank = dist.get_rank()
        self.global_world_size = dist.get_world_size()
        self.rank_in_group = self.rank
        self._group = device_group if device_group is not None else cpu_group
        # The ops know this project's backend alone.
        self._by_ops = backend_of(self._group) == OURS
        self._messages = Messenger(self._group, unique_name, self.device, channel=1)

    def all_reduce(
        self, input_: Tensor, op: ReduceOp | ReduceOp.RedOpType | None = ReduceOp.SUM
    ) -> Tensor:
        """The reduction over the ranks, in a new tensor. SUM and AVG are differentiable."""
        name = op_name(op, f"all_reduce on group {self.unique_name!r}, rank {self.rank}")
        if self._by_ops:
            return ops.all_reduce(input_, name, self._group)
        return apply(DistributedAutograd.AllReduce, self._group, input_, op)

    def all_gather(
        self, input_: Tensor, dim: int = -1, *, sizes: Sequence[int] | None = None
    ) -> Tensor:
        """The tensors of all ranks, which have the same shape, joined along `dim`.

        Args:
            sizes: what each rank has along `dim`, if they differ.
        """
        dim = self._checked_dim("all_gather", input_, dim)
        if self._by_ops:
            return ops.all_gather(input_, dim, self._group, sizes)
        self._check_even("all_gather", sizes=sizes)
        return apply(DistributedAutograd.AllGather, self._group, input_, self.world_size, dim)

    def slice(
        self,
        input_: Tensor,
        dim: int = -1,
        *,
        scale_grad: bool,
        sizes: Sequence[int] | None = None,
    ) -> Tensor:
        """This rank's part of `dim`. Backward gathers; `scale_grad` divides by the ranks then.

        Args:
            sizes: what each rank gets along `dim`; without them it must be a multiple of the ranks.
        """
        dim = self._checked_dim("shard", input_, dim)
        if sizes is None:
            self._check_divides("shard", input_, dim)
        if self._by_ops:
            return ops.shard(input_, dim, self._group, scale_grad=scale_grad, sizes=sizes)
        self._check_even("shard", sizes=sizes)
        return apply(
            DistributedAutograd.Slice, self._group, input_, self.world_size, dim, scale_grad
        )

    def all_to_all_4D(  # noqa: N802  (FastVideo's name)
        self,
        input_: Tensor,
        scatter_dim: int = 2,
        gather_dim: int = 1,
        *,
        scatter_sizes: Sequence[int] | None = None,
        gather_sizes: Sequence[int] | None = None,
    ) -> Tensor:
        """Scatters one dimension over the ranks and gathers another; see `ops.all_to_all_4d`.

        Parts are equal unless sizes are given, as FastVideo's way back names none.
        """
        if scatter_sizes is None and input_.dim() == 4 and 0 <= scatter_dim < 4:
            self._check_divides("all_to_all_4D", input_, scatter_dim)
        if self._by_ops:
            return ops.all_to_all_4d(
                input_, scatter_dim, gather_dim, self._group, scatter_sizes, gather_sizes
            )
        self._check_even("all_to_all_4D", scatter_sizes=scatter_sizes, gather_sizes=gather_sizes)
        return apply(
            DistributedAutograd.AllToAll4D,
            self._group,
            input_,
            self.world_size,
            scatter_dim,
            gather_dim,
        )

    def gather(self, input_: Tensor, dst: int = 0, dim: int = -1) -> Tensor | None:
        """The tensors of all ranks joined along `dim`, on rank `dst`; None on the others.

        Not differentiable: the result needs no gradient.
        """
        dim = self._checked_dim("gather", input_, dim)
        self._check_rank("gather to", dst)
        if input_.is_cpu:
            self._messages.agree(f"gather of {described(input_)} to rank {dst}, dimension {dim}")
        sent = input_.detach()
        output, parts = None, None
        if self.rank == dst:
            shape = list(sent.shape)
            shape[dim] *= self.world_size
            output = sent.new_empty(shape)
            # Views: received in place where they are contiguous, else by one copy each.
            parts = [output.narrow(dim, r * sent.size(dim), sent.size(dim)) for r in self._all()]
        received = parts
        if not self._by_ops:  # other backends want contiguous memory
            sent = sent.contiguous()
            received = None if parts is None else [torch.empty_like(sent) for _ in parts]
        dist.gather(sent, received, group=self._group, group_dst=dst)
        if received is not None and parts is not None and received is not parts:
            for part, one in zip(parts, received, strict=True):
                part.copy_(one)
        return output

    def send(self, tensor: Tensor, dst: int | None = None) -> None:
        """Sends to `dst`, by default the next rank. Returns when the tensor may be changed."""
        dst = (self.rank + 1) % self.world_size if dst is None else dst
        self._check_peer("send to", dst)
        self._messages.send_tensor(tensor, dst)

    def recv(self, size: torch.Size, dtype: torch.dtype, src: int | None = None) -> Tensor:
        """The next tensor that `src` sent, by default the previous rank; in new memory.

        Raises:
            ValueError: it has another shape or dtype. It is lost; the group stays usable.
        """
        src = (self.rank - 1) % self.world_size if src is None else src
        self._check_peer("recv from", src)
        return self._messages.recv_tensor(size, dtype, src).to(self.device)

    def destroy(self) -> None:
        """Frees what the communicator itself holds; the groups are its maker's. Idempotent."""

    def _all(self) -> range:
        return range(self.world_size)

    def _checked_dim(self, what: str, tensor: Tensor, dim: int) -> int:
        if not -tensor.dim() <= dim < tensor.dim():
            raise ValueError(
                f"{what} on group {self.unique_name!r}, rank {self.rank}: shape "
                f"{list(tensor.shape)} has no dimension {dim}"
            )
        return dim % tensor.dim()

    def _check_divides(self, what: str, tensor: Tensor, dim: int) -> None:
        if tensor.size(dim) % self.world_size:
            raise ValueError(
                f"{what} on group {self.unique_name!r}, rank {self.rank}: dimension {dim} of shape "
                f"{list(tensor.shape)} has size {tensor.size(dim)}, no multiple of the "
                f"{self.world_size} ranks; pad it, or give the sizes of its parts"
            )

    def _check_even(self, what: str, **sizes: Sequence[int] | None) -> None:
        if given := [name for name, value in sizes.items() if value is not None]:
            raise NotImplementedError(
                f"{what} on group {self.unique_name!r}, rank {self.rank}: {given[0]} need a group "
                f"of the backend {OURS!r}; this one is of {backend_of(self._group)!r}"
            )

    def _check_rank(self, what: str, rank: int) -> None:
        check_rank(what, rank, self.unique_name, self.rank, self.world_size)

    def _check_peer(self, what: str, rank: int) -> None:
        check_peer(what, rank, self.unique_name, self.rank, self.world_size)
