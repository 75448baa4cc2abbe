"""GroupCoordinator: all that the ranks of one parallel group do together.

Its tensors go through a device communicator, its objects and dictionaries through messages.py;
its c10d group may be shared with other coordinators of the same ranks (process_groups.py).

over 400 lines because FastVideo's class has so many methods; each only asks whom it concerns.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Backend, ProcessGroup, ReduceOp

from fastvideo_dist import process_groups
from fastvideo_dist.broadcasts import Broadcaster
from fastvideo_dist.device_communicators.base_device_communicator import DeviceCommunicatorBase
from fastvideo_dist.device_communicators.cpu_communicator import CpuCommunicator
from fastvideo_dist.device_communicators.cuda_communicator import CudaCommunicator
from fastvideo_dist.graph_capture import GraphCaptureContext, capture, connect_gpus
from fastvideo_dist.local import get_local_torch_device
from fastvideo_dist.message_queue import MessageQueue
from fastvideo_dist.messages import Messenger, TensorDictHandle

__all__ = ["GraphCaptureContext", "GroupCoordinator", "destroy_groups", "find_group"]


# Those not destroyed, by `unique_name`.
_groups: dict[str, GroupCoordinator] = {}


def find_group(name: str) -> GroupCoordinator:
    """The coordinator with this `unique_name`, such as "sp:0".

    Raises:
        ValueError: there is none (any more).
    """
    try:
        return _groups[name]
    except KeyError:
        raise ValueError(
            f"there is no group {name!r} (any more); there are {sorted(_groups) or 'none'}"
        ) from None


def destroy_groups() -> None:
    """Destroys every coordinator that is left, whoever made it. Local."""
    for group in list(_groups.values()):
        group.destroy()


class GroupCoordinator:
    """One rank's part in a group of ranks.

    Arguments named `src` and `dst` are ranks in the group; the attributes `rank` and `ranks` are
    global. With one rank every call on a tensor returns that same tensor object. All calls but
    `send`, `recv` and their like are collective: every rank of the group makes them, in the same
    order, also in relation to other coordinators with the same ranks. One thread at a time.

    Raises, from each call:
        ValueError: an argument is wrong; nothing was sent.
        RuntimeError: the coordinator was destroyed.
        NotImplementedError: no transport for tensors of this device.
        torch.distributed.DistBackendError: the ranks disagree, or one died; the group is broken.
    """

    rank: int
    ranks: list[int]
    world_size: int
    local_rank: int  # on its host; chooses the device
    rank_in_group: int
    # One group for both, unless another backend was asked for that wants two.
    cpu_group: ProcessGroup
    device_group: ProcessGroup
    use_device_communicator: bool
    device_communicator: DeviceCommunicatorBase | None
    mq_broadcaster: MessageQueue | None

    def __init__(
        self,
        group_ranks: list[list[int]],
        local_rank: int,
        torch_distributed_backend: str | Backend,
        use_device_communicator: bool,
        use_message_queue_broadcaster: bool = False,
        group_name: str | None = None,
        *,
        timeout: timedelta | None = None,
        device: torch.device | None = None,
    ) -> None:
        """Makes the groups. Collective over all ranks of torch.distributed's default group.

        Args:
            group_ranks: global ranks of every group of this kind, ascending in each; the same on
                all ranks. This rank belongs to the one it is in.
            torch_distributed_backend: "nccl" stands for this project's, see
                `process_groups.resolve_backend`.
            use_device_communicator: whether calls on tensors will be made.
            use_message_queue_broadcaster: whether to make the queue that rank 0 writes at once, and
                to show it as `mq_broadcaster`; else it is made by the first broadcast from there.
            group_name: "sp" makes "sp:0", or the next number that is free on all ranks.
            timeout: of each call; None: that of the default group.
            device: of this rank's tensors; None: `get_local_torch_device()`.

        Raises:
            ValueError: malformed groups, ranks that want different ones, or this rank in none.
        """
        name = group_name or "anonymous"
        self._shared, self.unique_name = process_groups.acquire(
            group_ranks,
            process_groups.resolve_backend(torch_distributed_backend),
            timeout,
            name,
            _free_number(name),
        )
        self.rank = dist.get_rank()
        if self._shared is None:
            raise ValueError(
                f"{self.unique_name}: rank {self.rank} of {dist.get_world_size()} is in none of "
                f"the groups {group_ranks}; the sizes of the groups must add up to the number of "
                "ranks"
            )
        self.device_group = self.cpu_group = self._shared.group
        self.ranks = list(dist.get_process_group_ranks(self.device_group))
        self.world_size = len(self.ranks)
        self.rank_in_group = self.ranks.index(self.rank)
        self.local_rank = local_rank
        self.timeout = process_groups.timeout_of(self.device_group)
        self.device = get_local_torch_device() if device is None else device
        self.use_device_communicator = use_device_communicator
        self.device_communicator = None
        self.mq_broadcaster = None
        self.use_custom_op_call = self._shared.key[1] == process_groups.OURS
        self._is_warm = False  # of communication_op
        self._is_connected = False  # for graph_capture
        self._messages = Messenger(self.device_group, self.unique_name, self.device)
        self._broadcasters: dict[ProcessGroup, Broadcaster] = {}
        try:
            if use_device_communicator and self.world_size > 1:
                self.device_communicator = self._make_communicator()
            if use_message_queue_broadcaster and self.world_size > 1:
                self.mq_broadcaster = self._broadcaster(None, 0)[0].queue(0)
        except BaseException:
            self._let_go()
            raise
        _groups[self.unique_name] = self

    def _make_communicator(self) -> DeviceCommunicatorBase:
        kind = CudaCommunicator if self.device.type == "cuda" else CpuCommunicator
        return kind(self.cpu_group, self.device, self.device_group, self.unique_name)

    def _broadcaster(self, group: ProcessGroup | None, src: int) -> tuple[Broadcaster, int]:
        """That of `group`, None for this one's, and the rank there of this one's rank `src`."""
        if group is None or group is self.device_group:
            group, root = self.device_group, src
        else:
            root = self._rank_in(group, src)
        broadcaster = self._broadcasters.get(group)
        if broadcaster is None:
            timeout = process_groups.timeout_of(group)
            broadcaster = Broadcaster(group, self.unique_name, self.device, timeout)
            self._broadcasters[group] = broadcaster
        return broadcaster, root

    def __repr__(self) -> str:
        if self._is_destroyed:
            return f"GroupCoordinator({self.unique_name}, destroyed)"
        return f"GroupCoordinator({self.unique_name}, rank {self.rank} of ranks {self.ranks})"

    # ---- ranks, all global ------------------------------------------------------------------

    @property
    def first_rank(self) -> int:
        return self.ranks[0]

    @property
    def last_rank(self) -> int:
        return self.ranks[-1]

    @property
    def is_first_rank(self) -> bool:
        return self.rank == self.ranks[0]

    @property
    def is_last_rank(self) -> bool:
        return self.rank == self.ranks[-1]

    @property
    def next_rank(self) -> int:
        """The one after this rank, around the end."""
        return self.ranks[(self.rank_in_group + 1) % self.world_size]

    @property
    def prev_rank(self) -> int:
        """The one before this rank, around the beginning."""
        return self.ranks[(self.rank_in_group - 1) % self.world_size]

    # ---- tensors ----------------------------------------------------------------------------

    def all_reduce(
        self, input_: Tensor, op: ReduceOp | ReduceOp.RedOpType | None = ReduceOp.SUM
    ) -> Tensor:
        """The reduction over the ranks, in a new tensor, on every device. None means SUM.

        SUM and AVG are differentiable; backward through another raises.
        """
        if self.world_size == 1:
            return self._alone(input_)
        return self._communicator.all_reduce(input_, op)

    def all_gather(
        self, input_: Tensor, dim: int = -1, *, sizes: Sequence[int] | None = None
    ) -> Tensor:
        """The tensors of all ranks joined along `dim`; of one shape, or with the `sizes` there.

        Differentiable.
        """
        if self.world_size == 1:
            return self._alone(input_)
        return self._communicator.all_gather(input_, dim, sizes=sizes)

    def shard(
        self,
        input_: Tensor,
        dim: int = -1,
        *,
        scale_grad: bool,
        sizes: Sequence[int] | None = None,
    ) -> Tensor:
        """This rank's part of `dim`: of `sizes`, or an equal one if the ranks divide it.

        Backward gathers the gradients of all parts, and divides them by the number of ranks if
        `scale_grad`.
        """
        if self.world_size == 1:
            return self._alone(input_)
        return self._communicator.slice(input_, dim, scale_grad=scale_grad, sizes=sizes)

    def all_to_all_4D(  # noqa: N802  (FastVideo's name)
        self,
        input_: Tensor,
        scatter_dim: int = 2,
        gather_dim: int = 1,
        *,
        scatter_sizes: Sequence[int] | None = None,
        gather_sizes: Sequence[int] | None = None,
    ) -> Tensor:
        """`[B, S/W, H, D]` to `[B, S, H/W, D]`, or with (1, 2) back; see `ops.all_to_all_4d`.

        Args:
            scatter_sizes: how many heads each rank gets; None: equal parts.
            gather_sizes: how long each rank's part of the sequence is; None: as this one's.
        """
        if self.world_size == 1:
            return self._alone(input_)
        return self._communicator.all_to_all_4D(
            input_,
            scatter_dim,
            gather_dim,
            scatter_sizes=scatter_sizes,
            gather_sizes=gather_sizes,
        )

    def gather(self, input_: Tensor, dst: int = 0, dim: int = -1) -> Tensor | None:
        """The tensors of all ranks joined along `dim`, on `dst`; None elsewhere.

        Not differentiable.
        """
        if self.world_size == 1:
            return self._alone(input_)
        return self._communicator.gather(input_, dst, dim)

    def broadcast(self, input_: Tensor, src: int = 0) -> Tensor:
        """Overwrites `input_` with that of `src`, and returns it. Any strides, any dtype.

        The shapes must be equal.
        """
        self._check_rank("broadcast from", src)
        if self.world_size == 1:
            return self._alone(input_)
        self._messages.broadcast_tensor(input_, src)
        return input_

    def send(self, tensor: Tensor, dst: int | None = None) -> None:
        """Sends to `dst`, by default the next rank. Returns when the tensor may be changed."""
        self._communicator.send(tensor, dst)

    def recv(self, size: torch.Size, dtype: torch.dtype, src: int | None = None) -> Tensor:
        """The next tensor that `src`, by default the previous rank, gave to `send`.

        Raises:
            ValueError: it has another size or dtype. It is lost; the group stays usable.
        """
        return self._communicator.recv(size, dtype, src)

    def agree(self, call: str) -> None:
        """Collective: raises DistBackendError on all ranks if their texts differ."""
        self._check_alive()
        self._messages.agree(call)

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        self._check_alive()
        dist.barrier(group=self.cpu_group)

    # ---- objects ----------------------------------------------------------------------------

    def broadcast_object(self, obj: Any | None = None, src: int = 0) -> Any:
        """The object of `src`, on every rank; `src` gets back its own.

        Large buffers in it, of tensors and arrays, are not pickled.
        """
        self._check_rank("broadcast_object from", src)
        if self.world_size == 1:
            return obj
        broadcaster, root = self._broadcaster(None, src)
        return broadcaster.broadcast_object(obj, root)

    def broadcast_object_list(
        self, obj_list: list[Any], src: int = 0, group: ProcessGroup | None = None
    ) -> list[Any]:
        """Overwrites the elements of `obj_list` with those of `src`, and returns it.

        Args:
            src: rank in this coordinator's group; it must be in `group` too.
            group: over which to send; None: the coordinator's.

        Raises:
            ValueError: the list is longer or shorter than that of `src`.
        """
        self._check_rank("broadcast_object_list from", src)
        if self.world_size == 1:
            return obj_list
        broadcaster, root = self._broadcaster(group, src)
        received = broadcaster.broadcast_object(list(obj_list), root)
        if len(received) != len(obj_list):
            raise ValueError(
                f"broadcast_object_list on group {self.unique_name!r}, rank {self.rank}: the list "
                f"has {len(obj_list)} elements, that of rank {src} has {len(received)}"
            )
        obj_list[:] = received
        return obj_list

    def send_object(self, obj: Any, dst: int) -> None:
        """Sends an object to `dst`; returns when it may be changed."""
        self._check_peer("send_object to", dst)
        self._messages.send_object(obj, dst)

    def recv_object(self, src: int) -> Any:
        """The next object that `src` sent here."""
        self._check_peer("recv_object from", src)
        return self._messages.recv_object(src)

    # ---- dictionaries of tensors ------------------------------------------------------------

    def broadcast_tensor_dict(
        self,
        tensor_dict: dict[str, Tensor | Any] | None = None,
        src: int = 0,
        group: ProcessGroup | None = None,
        metadata_group: ProcessGroup | None = None,
    ) -> dict[str, Tensor | Any] | None:
        """The dictionary of `src`, on every rank; `src` gets back its own.

        Args:
            tensor_dict: tensors of any dtype and strides, other values (pickled), and
                dictionaries of these; ignored on all ranks but `src`. The received tensors are
                contiguous, and on the receiver's own device of the same type.
            group: over which to send; None: the coordinator's.
            metadata_group: as FastVideo; nothing is sent apart from the tensors, so no use is
                made of it.
        """
        self._check_rank("broadcast_tensor_dict from", src)
        if self.world_size == 1:
            return tensor_dict
        broadcaster, root = self._broadcaster(group, src)
        return broadcaster.broadcast_tensor_dict(tensor_dict, root)

    def send_tensor_dict(
        self,
        tensor_dict: dict[str, Tensor | Any],
        dst: int | None = None,
        all_gather_group: GroupCoordinator | None = None,
    ) -> dict[str, Tensor | Any] | None:
        """Sends a dictionary to `dst`, by default the next rank; returns when it may be changed.

        Args:
            all_gather_group: all of its ranks send the same dictionary to receivers that are a
                group of the same size; then each sends only its part of the large tensors, and
                the receivers gather them.

        Returns:
            None; with one rank the dictionary.
        """
        if self.world_size == 1:
            return tensor_dict
        self.isend_tensor_dict(tensor_dict, dst, all_gather_group).wait()
        return None

    def recv_tensor_dict(
        self, src: int | None = None, all_gather_group: GroupCoordinator | None = None
    ) -> dict[str, Tensor | Any] | None:
        """The next dictionary from `src`, by default the previous rank; None with one rank.

        Args:
            all_gather_group: see `send_tensor_dict`; collective over it.
        """
        if self.world_size == 1:
            return None
        return self.irecv_tensor_dict(src, all_gather_group).wait()

    def isend_tensor_dict(
        self,
        tensor_dict: dict[str, Tensor | Any],
        dst: int | None = None,
        all_gather_group: GroupCoordinator | None = None,
    ) -> TensorDictHandle:
        """As `send_tensor_dict`, but returns at once.

        The dictionary's tensors must not be changed before the handle's `wait()` has returned.
        """
        dst = (self.rank_in_group + 1) % self.world_size if dst is None else dst
        self._check_peer("send_tensor_dict to", dst)
        parts, part = 1, 0
        if all_gather_group is not None:
            parts, part = all_gather_group.world_size, all_gather_group.rank_in_group
        return self._messages.isend_tensor_dict(tensor_dict, dst, parts, part)

    def irecv_tensor_dict(
        self, src: int | None = None, all_gather_group: GroupCoordinator | None = None
    ) -> TensorDictHandle:
        """As `recv_tensor_dict`, but returns at once; the handle's `wait()` returns the dictionary.

        Dictionaries of one sender come in the order it sent them, whatever is waited for first.
        """
        src = (self.rank_in_group - 1) % self.world_size if src is None else src
        self._check_peer("recv_tensor_dict from", src)
        return self._messages.irecv_tensor_dict(src, all_gather_group)

    # ---- life -------------------------------------------------------------------------------

    def graph_capture(
        self, graph_capture_context: GraphCaptureContext | None = None
    ) -> AbstractContextManager[GraphCaptureContext]:
        """Makes the context's stream the current one, a new stream if there is no context.

        Work captured on it (`torch.cuda.graph(g, stream=context.stream)`) may call this group.
        The first block is collective: it connects the ranks' GPUs, as nothing may in a capture.
        Without CUDA nothing is captured, and the context is handed through.
        """
        return capture(self.unique_name, graph_capture_context, self._connect_gpus)

    def _connect_gpus(self) -> None:
        self._check_alive()
        if self.device.type == "cuda" and self.world_size > 1 and not self._is_connected:
            connect_gpus(self.device_group, self.device)
            self._is_connected = True

    def destroy(self) -> None:
        """Lets go of the groups; those nobody else holds are destroyed. Local and idempotent."""
        if self._is_destroyed:
            return
        del _groups[self.unique_name]
        self._let_go()

    def _let_go(self) -> None:
        shared, self._shared = self._shared, None
        communicator, self.device_communicator = self.device_communicator, None
        broadcasters, self._broadcasters = self._broadcasters, {}
        self.mq_broadcaster = None
        # FastVideo's code asks whether there is a group; its type says there always is.
        self.device_group = self.cpu_group = None  # type: ignore[assignment]
        try:
            for broadcaster in broadcasters.values():
                broadcaster.close()
            if communicator is not None:
                communicator.destroy()
        finally:
            if shared is not None:
                process_groups.release(shared)

    @property
    def _is_destroyed(self) -> bool:
        return self._shared is None

    @property
    def is_usable(self) -> bool:
        """False once it, or torch.distributed under it, was destroyed."""
        return self._shared is not None and process_groups.is_alive(self._shared.group)

    @property
    def _communicator(self) -> DeviceCommunicatorBase:
        return self.device_communicator or self._no_communicator()

    def _no_communicator(self) -> NoReturn:
        self._check_alive()
        if self.world_size == 1:
            raise ValueError(f"group {self.unique_name!r} has one rank; there is no other to reach")
        raise ValueError(
            f"group {self.unique_name!r} was made with use_device_communicator=False; make it with "
            "True to move tensors"
        )

    def _alone(self, input_: Tensor) -> Tensor:
        self._check_alive()
        return input_

    def _check_alive(self) -> None:
        if self._is_destroyed:
            raise RuntimeError(
                f"group {self.unique_name!r} was destroyed on rank {self.rank}; initialise again "
                "to use it"
            )

    def _check_rank(self, what: str, rank: int) -> None:
        self._check_alive()
        process_groups.check_rank(what, rank, self.unique_name, self.rank_in_group, self.world_size)

    def _check_peer(self, what: str, rank: int) -> None:
        self._check_alive()
        process_groups.check_peer(what, rank, self.unique_name, self.rank_in_group, self.world_size)

    def _rank_in(self, group: ProcessGroup, src: int) -> int:
        if not process_groups.is_alive(group):
            raise ValueError(
                f"group {self.unique_name!r}, rank {self.rank_in_group}: the group given is "
                f"{group!r}, which torch.distributed does not know (any more)"
            )
        ranks = dist.get_process_group_ranks(group)
        if self.ranks[src] not in ranks:
            raise ValueError(
                f"rank {src} of group {self.unique_name!r} is rank {self.ranks[src]} of the world, "
                f"which is not in the group given, of ranks {ranks}"
            )
        return ranks.index(self.ranks[src])


def _free_number(name: str) -> int:
    """One more than the highest of the coordinators `name` on this rank."""
    numbers = [key.rpartition(":") for key in _groups]
    return max((int(number) + 1 for base, _, number in numbers if base == name), default=0)
