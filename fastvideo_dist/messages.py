"""Objects, tensors and dictionaries of tensors from one rank of a c10d group to another."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, Work

from fastvideo_dist import wire
from fastvideo_dist.agreement import Agreement, described
from fastvideo_dist.process_groups import OURS, backend_of
from fastvideo_dist.tensor_dict import Incoming, encode, encode_object, encode_tensor
from fastvideo_dist.wire import Buffer, Kind

if TYPE_CHECKING:
    from fastvideo_dist.group_coordinator import GroupCoordinator

__all__ = ["Messenger", "TensorDictHandle"]

# Frames and what follows them have tags of their own, so that a frame may be awaited while what
# follows an earlier one is still under way, and neither meets a tensor the user sends (tag 0).
_FRAME_TAG = 0x46560001
_REST_TAG = 0x46560002
# A messenger for single tensors has the next two: it keeps no order with another one's messages.
_TAGS_PER_CHANNEL = 2


class TensorDictHandle:
    """A dictionary under way. Holds what is sent, or is received into, until it is done."""

    def wait(self, timeout: timedelta | None = None) -> dict[Any, Any] | None:
        """Returns when it is done: the received dictionary, or None for a sent one.

        Args:
            timeout: of this wait, where shorter than the group's; None: the group's.

        Raises:
            torch.distributed.DistBackendError: the other rank died, did not come, or does not
                send what is received.
        """
        raise NotImplementedError

    def is_completed(self) -> bool:
        """Whether `wait()` would return at once. Does not wait itself."""
        raise NotImplementedError


class _Sending(TensorDictHandle):
    def __init__(self, works: list[Work], tensors: list[Tensor]) -> None:
        self._works = works
        self._tensors = tensors

    def wait(self, timeout: timedelta | None = None) -> None:
        _wait_for(self._works, timeout)
        self._tensors = []

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)


class _Receiving(TensorDictHandle):
    """First the frame is received, then what it announces; at last parts are gathered.

    What follows the frames of one sender comes in the order of the frames. So each handle asks
    for its rest only after all earlier handles of its sender have: `queue` holds, in order, those
    that have not.
    """

    def __init__(
        self,
        messenger: Messenger,
        kind: Kind,
        src: int,
        queue: deque[_Receiving],
        gather_group: GroupCoordinator | None,
    ) -> None:
        self._messenger = messenger
        self._kind = kind
        self._src = src
        self._queue = queue
        self._gather_group = gather_group
        self.incoming = Incoming(messenger.device)
        self._frame = wire.frame_for(kind)
        self._frame_work = messenger.irecv(self._frame.tensor, src, messenger.frame_tag)
        self._works: list[Work] = []
        self._done = False
        self._result: dict[Any, Any] | None = None
        queue.append(self)

    def wait(self, timeout: timedelta | None = None) -> dict[Any, Any] | None:
        self.wait_for_buffers(timeout)
        if self._result is None:
            self._gather()
            self._result = self.incoming.tensor_dict()
        return self._result

    def wait_for_buffers(self, timeout: timedelta | None = None) -> None:
        while self in self._queue:
            self._queue[0].ask_for_rest(timeout)
        _wait_for(self._works, timeout)
        self._done = True

    def is_completed(self) -> bool:
        while self in self._queue:
            if not self._queue[0]._frame_work.is_completed():
                return False
            self._queue[0].ask_for_rest(None)
        return self._done or all(work.is_completed() for work in self._works)

    def ask_for_rest(self, timeout: timedelta | None) -> None:
        """To be called on the first of the queue; waits for the frame."""
        _wait(self._frame_work, timeout)
        self._queue.popleft()
        incoming, tag = self.incoming, self._messenger.rest_tag
        is_object = self._kind is Kind.OBJECT
        large = wire.unpack(
            self._kind,
            self._frame,
            lambda body: _wait(self._messenger.irecv(body, self._src, tag), None),
            incoming.targets_of_object if is_object else incoming.targets,
        )
        self._works = [self._messenger.irecv(target, self._src, tag) for target in large]

    def _gather(self) -> None:
        group = self._gather_group
        size = 1 if group is None else group.world_size
        if wrong := self.incoming.parts - {1, size}:
            raise ValueError(
                f"recv_tensor_dict on group {self._messenger.name!r}: rank {self._src} sent "
                f"tensors in {wrong.pop()} parts, all_gather_group has {size} ranks; it must be "
                "given on both sides, with as many ranks"
            )
        if group is not None and size > 1:
            # Parts of different dictionaries may well have the same number of bytes.
            group.agree(f"recv_tensor_dict of {self.incoming.description or 'no parts'}")
            self.incoming.gather_parts(lambda part: group.all_gather(part, dim=0))


class Messenger:
    """Messages over one group. Ranks are ranks in the group; one thread at a time.

    Args:
        channel: 0 or 1. Messengers of one group keep their messages apart by it.
    """

    def __init__(
        self, group: ProcessGroup, name: str, device: torch.device, channel: int = 0
    ) -> None:
        self.frame_tag = _FRAME_TAG + channel * _TAGS_PER_CHANNEL
        self.rest_tag = _REST_TAG + channel * _TAGS_PER_CHANNEL
        self.name = name
        self.device = device
        self._group = group
        self._rank = group.rank()
        # Other backends neither take strided tensors nor know all dtypes.
        self._is_ours = backend_of(group) == OURS
        self._receiving: dict[int, deque[_Receiving]] = {}
        self._agreement: Agreement | None = None

    def agree(self, call: str) -> None:
        """See `Agreement.check`."""
        if self._agreement is None:
            self._agreement = Agreement(self._group, self.name)
        self._agreement.check(call)

    def broadcast_tensor(self, tensor: Tensor, src: int) -> None:
        """In place, whatever the strides and the dtype; the shapes must be equal."""
        if tensor.is_cpu:  # no rank waits for another before a GPU's work is in its stream
            self.agree(f"broadcast of {described(tensor)} from rank {src}")
        if self._rank != src and _is_expanded(tensor):
            # Only this rank knows: it takes part, so that the others get what they came for.
            self._broadcast(torch.empty_like(tensor, memory_format=torch.contiguous_format), src)
            raise ValueError(
                f"broadcast on group {self.name!r}, rank {self._rank}: cannot receive into "
                f"{described(tensor)} of strides {list(tensor.stride())}, whose elements share "
                "memory; give a tensor that is not expanded. The group stays usable"
            )
        if self._is_ours or tensor.numel() == 0:
            self._broadcast(tensor, src)
            return
        memory = tensor.detach().resolve_conj().resolve_neg().contiguous()
        self._broadcast(wire.bytes_of(memory), src)
        if self._rank != src:
            with torch.no_grad():
                tensor.copy_(memory)

    def send_object(self, obj: Any, dst: int) -> None:
        self._isend(Kind.OBJECT, *encode_object(obj), dst).wait()

    def recv_object(self, src: int) -> Any:
        receiving = self._irecv(Kind.OBJECT, src, None)
        receiving.wait_for_buffers()
        return receiving.incoming.object()

    def send_tensor(self, tensor: Tensor, dst: int) -> None:
        self._isend(Kind.TENSOR, *encode_tensor(tensor), dst).wait()

    def recv_tensor(self, size: Sequence[int], dtype: torch.dtype, src: int) -> Tensor:
        """Takes what was sent, whatever it is, and raises ValueError if it is not as announced."""
        receiving = self._irecv(Kind.TENSOR, src, None)
        receiving.wait_for_buffers()
        tensor = receiving.incoming.tensor
        if tensor.shape != torch.Size(size) or tensor.dtype != dtype:
            raise ValueError(
                f"recv on group {self.name!r}, rank {self._rank}: expected "
                f"{str(dtype).removeprefix('torch.')} {list(size)}, rank {src} sent "
                f"{described(tensor)}; what was sent is lost, the group stays usable"
            )
        return tensor

    def isend_tensor_dict(
        self, tensor_dict: dict[Any, Any], dst: int, parts: int, part: int
    ) -> TensorDictHandle:
        return self._isend(Kind.TENSOR_DICT, *encode(tensor_dict, parts, part), dst)

    def irecv_tensor_dict(
        self, src: int, gather_group: GroupCoordinator | None
    ) -> TensorDictHandle:
        return self._irecv(Kind.TENSOR_DICT, src, gather_group)

    def irecv(self, tensor: Tensor, src: int, tag: int) -> Work:
        return self._group.recv([wire.bytes_of(tensor)], src, tag)

    def _isend(self, kind: Kind, head: bytes, buffers: list[Buffer], dst: int) -> _Sending:
        tensors = wire.pack(kind, head, buffers)
        tags = [self.frame_tag] + [self.rest_tag] * (len(tensors) - 1)
        works = [
            self._group.send([wire.bytes_of(tensor)], dst, tag)
            for tensor, tag in zip(tensors, tags, strict=True)
        ]
        return _Sending(works, tensors)

    def _irecv(self, kind: Kind, src: int, gather_group: GroupCoordinator | None) -> _Receiving:
        queue = self._receiving.setdefault(src, deque())
        return _Receiving(self, kind, src, queue, gather_group)

    def _broadcast(self, tensor: Tensor, src: int) -> None:
        dist.broadcast(tensor, group=self._group, group_src=src)


def _is_expanded(tensor: Tensor) -> bool:
    sizes_and_strides = zip(tensor.shape, tensor.stride(), strict=True)
    return any(size > 1 and stride == 0 for size, stride in sizes_and_strides)


def _wait_for(works: list[Work], timeout: timedelta | None) -> None:
    """Takes out those that are done: Gloo's may be waited for once only."""
    while works:
        _wait(works[0], timeout)
        del works[0]


def _wait(work: Work, timeout: timedelta | None) -> None:
    if timeout is None:
        work.wait()
    else:
        work.wait(timeout)
