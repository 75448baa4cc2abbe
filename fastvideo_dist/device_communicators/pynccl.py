"""NCCL for one group of ranks, beside c10d: on streams of the caller's choice."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp

from fastvideo_dist._compat import extension
from fastvideo_dist.device_communicators.distributed_autograd import apply, exact_sum
from fastvideo_dist.device_communicators.pynccl_wrapper import NCCLLibrary, ncclUniqueId
from fastvideo_dist.nccl import (
    Communicator,
    NcclInvalid,
    NcclRedOp,
    NcclUnsupported,
    UniqueId,
    get_unique_id,
    group_end,
    group_start,
)
from fastvideo_dist.process_groups import timeout_of
from fastvideo_dist.stateless_process_group import StatelessProcessGroup

__all__ = ["NCCLLibrary", "PyNcclCommunicator", "ncclUniqueId"]

logger = logging.getLogger(__name__)

_OPS = {
    "SUM": NcclRedOp.SUM,
    "PRODUCT": NcclRedOp.PROD,
    "MIN": NcclRedOp.MIN,
    "MAX": NcclRedOp.MAX,
    "AVG": NcclRedOp.AVG,
}


class PyNcclCommunicator:
    """Collectives of NCCL on contiguous tensors of one GPU, enqueued on a stream.

    The constructor is collective: the ranks meet over `group` and connect their GPUs, so that a
    later call may be captured in a CUDA graph. All calls but `send` and `recv` are collective too.
    Arguments named `src` and `dst` are ranks in the group. `stream` is a `torch.cuda.Stream` of
    `device` or its handle, the current one if None; tensors that were allocated on another stream
    are the caller's to keep (`Tensor.record_stream`), but those given here are told to torch.

    While it is `disabled`, which it is from the beginning in a group of one rank, calls do nothing,
    and `all_reduce` returns None: as in FastVideo, where callers then take another way.

    Args:
        group: with CPU tensors, or a stateless one. Its ranks must be processes of one host.
        device: the index of a GPU, or its name.
        library_path: of the libnccl to use; a process has one. None: see docs/nccl.md.

    Raises:
        ValueError: `device` is no CUDA device; another library is in use already; from calls: a
            tensor of another device, not contiguous or of a dtype NCCL has not, a wrong number of
            elements, rank, reduction or stream.
        NotImplementedError: a rank, which is named, has no NCCL that can be used.
        RuntimeError: this process sees no GPU; from calls: the communicator was destroyed.
        torch.distributed.DistBackendError: as docs/errors.md says.
    """

    def __init__(
        self,
        group: ProcessGroup | StatelessProcessGroup,
        device: int | str | torch.device,
        library_path: str | None = None,
    ) -> None:
        self.device = _checked_device(device)
        self.group = group
        if isinstance(group, StatelessProcessGroup):
            self.rank, self.world_size = group.rank, group.world_size
        else:
            self.rank, self.world_size = group.rank(), group.size()
        self.nccl_version = ""
        self.comm: Communicator | None = None
        self._stream: Any = None
        self.available = self.world_size > 1
        self.disabled = not self.available
        if not self.available:
            return
        self.comm = self._meet(group, library_path)
        try:
            # Connects the ranks' GPUs: not to happen in the capture of a graph.
            self.all_reduce(torch.zeros(1, device=self.device))
        except BaseException:
            self.destroy()
            raise

    def _meet(
        self, group: ProcessGroup | StatelessProcessGroup, library_path: str | None
    ) -> Communicator:
        failure: Exception | None = None
        try:
            self.nccl_version, path = extension().load_nccl(library_path)
            logger.info("%s: NCCL %s of %s", self._site("creation"), self.nccl_version, path)
        except (NotImplementedError, ValueError) as error:
            failure = error
        unique_id = bytes(get_unique_id()) if self.rank == 0 else b""
        everyone = _gather(group, (str(failure or ""), unique_id))
        if failure is not None:
            raise failure
        for rank, (words, _) in enumerate(everyone):
            if words:
                raise NotImplementedError(f"{self._site('creation')}: rank {rank} refuses: {words}")
        timeout = group.timeout if isinstance(group, StatelessProcessGroup) else timeout_of(group)
        return Communicator.init(
            self.world_size,
            self.rank,
            UniqueId.from_bytes(everyone[0][1]),
            timeout=timeout,
            device=self.device,
        )

    # ---- calls ------------------------------------------------------------------------------

    def all_reduce(
        self,
        in_tensor: Tensor,
        op: ReduceOp = ReduceOp.SUM,  # type: ignore[assignment]
        stream: Any = None,
    ) -> Tensor:
        """The reduction over the ranks, in a new tensor. SUM and AVG are differentiable.

        Args:
            op: SUM, PRODUCT, MIN, MAX or AVG.

        Returns:
            The result; None while `disabled`.
        """
        if self.disabled:
            return None  # type: ignore[return-value]  # FastVideo's signature says Tensor
        self._live("all_reduce")
        return apply(_AllReduce, self, in_tensor, op, stream)

    def _all_reduce(self, in_tensor: Tensor, op: Any, stream: Any) -> Tensor:
        what = "all_reduce"
        reduction = self._reduction(what, op)
        self._check(what, "in_tensor", in_tensor)
        with self._enqueueing(what, stream, in_tensor) as (comm, handle):
            out = torch.empty_like(in_tensor)
            comm.allreduce(in_tensor, out, reduction, stream=handle)
        return out

    def all_gather(self, output_tensor: Tensor, input_tensor: Tensor, stream: Any = None) -> None:
        """Joins the inputs of all ranks in `output_tensor`, which is W times as long."""
        if self.disabled:
            return
        what = "all_gather"
        self._check(what, "output_tensor", output_tensor)
        self._check(what, "input_tensor", input_tensor)
        self._check_longer(what, "output_tensor", output_tensor, "input_tensor", input_tensor)
        with self._enqueueing(what, stream, output_tensor, input_tensor) as (comm, handle):
            comm.allgather(input_tensor, output_tensor, stream=handle)

    def reduce_scatter(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        op: ReduceOp = ReduceOp.SUM,  # type: ignore[assignment]
        stream: Any = None,
    ) -> None:
        """This rank's part of the reduction, into `output_tensor`; the input is W times as long."""
        if self.disabled:
            return
        what = "reduce_scatter"
        reduction = self._reduction(what, op)
        self._check(what, "output_tensor", output_tensor)
        self._check(what, "input_tensor", input_tensor)
        self._check_longer(what, "input_tensor", input_tensor, "output_tensor", output_tensor)
        with self._enqueueing(what, stream, output_tensor, input_tensor) as (comm, handle):
            comm.reduce_scatter(input_tensor, output_tensor, reduction, stream=handle)

    def broadcast(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        """Of `src`, in place."""
        if self.disabled:
            return
        self._check("broadcast", "tensor", tensor)
        with self._enqueueing("broadcast", stream, tensor) as (comm, handle):
            comm.broadcast(tensor, tensor, src, stream=handle)

    def send(self, tensor: Tensor, dst: int, stream: Any = None) -> None:
        """To `dst`, which calls `recv`; outside a group of calls the host waits for that."""
        if self.disabled:
            return
        self._check("send", "tensor", tensor)
        with self._enqueueing("send", stream, tensor) as (comm, handle):
            comm.send(tensor, dst, stream=handle)

    def recv(self, tensor: Tensor, src: int, stream: Any = None) -> None:
        """What `src` sends next, into `tensor`."""
        if self.disabled:
            return
        self._check("recv", "tensor", tensor)
        with self._enqueueing("recv", stream, tensor) as (comm, handle):
            comm.recv(tensor, src, stream=handle)

    def group_start(self) -> None:
        """Calls of this thread wait from here to `group_end`; see `fastvideo_dist.nccl`."""
        group_start()

    def group_end(self) -> None:
        """Makes the calls since `group_start`."""
        group_end()

    # ---- state ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def change_state(self, enable: bool | None = None, stream: Any = None) -> Iterator[None]:
        """Within the block it is enabled or not (None: if it can be), and on `stream`, if given."""
        before = self.disabled, self._stream
        enabled = self.available if enable is None else enable
        if enabled and not self.available:
            raise ValueError(f"{self._site('change_state')}: there is nothing to enable")
        self.disabled = not enabled
        self._stream = self._stream if stream is None else stream
        try:
            yield
        finally:
            self.disabled, self._stream = before

    def destroy(self) -> None:
        """Leaves the group. Not collective, idempotent; later calls raise."""
        comm, self.comm = self.comm, None
        if comm is not None:
            comm.destroy()

    # ---- checks -----------------------------------------------------------------------------

    def _site(self, what: str) -> str:
        return f"PyNcclCommunicator: {what} on {self.device}, rank {self.rank} of {self.world_size}"

    def _live(self, what: str) -> Communicator:
        if self.comm is None:
            raise RuntimeError(f"{self._site(what)}: the communicator was destroyed")
        return self.comm

    @contextlib.contextmanager
    def _enqueueing(
        self, what: str, stream: Any, *tensors: Tensor
    ) -> Iterator[tuple[Communicator, int]]:
        """The communicator and the handle of the stream, which is the current one meanwhile."""
        comm = self._live(what)
        stream = self._stream if stream is None else stream
        if getattr(stream, "device", self.device) != self.device:
            raise ValueError(f"{self._site(what)}: the stream is of {stream.device}")
        handle = extension().current_stream(self.device)
        with contextlib.ExitStack() as stack:
            if stream is not None and _handle(stream) != handle:
                handle = _handle(stream)
                other = torch.cuda.ExternalStream(handle, device=self.device)  # type: ignore[no-untyped-call]
                # What the call allocates belongs to the stream it is used on.
                stack.enter_context(torch.cuda.stream(other))
                for tensor in tensors:
                    tensor.record_stream(other)
            try:
                yield comm, handle
            except NcclUnsupported as error:
                raise NotImplementedError(str(error)) from None
            except NcclInvalid as error:
                raise ValueError(str(error)) from None

    def _check(self, what: str, name: str, tensor: Tensor) -> None:
        self._live(what)
        if tensor.device != self.device:
            raise ValueError(f"{self._site(what)}: {name} is on {tensor.device}")
        if not tensor.is_contiguous():
            raise ValueError(
                f"{self._site(what)}: {name} of shape {list(tensor.shape)} and strides "
                f"{list(tensor.stride())} is not contiguous; give it as contiguous()"
            )

    def _check_longer(self, what: str, long: str, whole: Tensor, short: str, part: Tensor) -> None:
        if whole.numel() != self.world_size * part.numel():
            raise ValueError(
                f"{self._site(what)}: {long} has {whole.numel()} elements and {short} "
                f"{part.numel()}; it must be {self.world_size} times as many"
            )

    def _reduction(self, what: str, op: Any) -> NcclRedOp:
        # A ReduceOp stands around one of the named ones.
        for name, reduction in _OPS.items():
            if op == getattr(ReduceOp, name):
                return reduction
        raise ValueError(f"{self._site(what)}: the reduction {op} is none of {', '.join(_OPS)}")


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, comm: PyNcclCommunicator, in_tensor: Tensor, op: Any, stream: Any
    ) -> Tensor:
        ctx.comm, ctx.op = comm, op
        return comm._all_reduce(in_tensor.detach(), op, stream)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor, None, None]:
        if not exact_sum(ctx.op):
            raise NotImplementedError(
                f"PyNcclCommunicator: all_reduce with {ctx.op} has no gradient here; only SUM and "
                "AVG have"
            )
        # Backward runs on the stream that forward ran on; it is the current one.
        return None, ctx.comm.all_reduce(grad_output.contiguous(), ctx.op), None, None


def _checked_device(device: int | str | torch.device) -> torch.device:
    place = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if place.type != "cuda":
        raise ValueError(f"PyNcclCommunicator: NCCL moves CUDA tensors; the device is {place}")
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"PyNcclCommunicator on {place}: no GPU is present (torch {torch.__version__}, "
            f"CUDA {torch.version.cuda}); CPU tensors are served by CpuCommunicator"
        )
    return place if place.index is not None else torch.device("cuda", torch.cuda.current_device())


def _handle(stream: Any) -> int:
    return int(getattr(stream, "cuda_stream", stream))


def _gather(group: ProcessGroup | StatelessProcessGroup, obj: Any) -> list[Any]:
    """By rank."""
    if isinstance(group, StatelessProcessGroup):
        return group.all_gather_obj(obj)
    everyone: list[Any] = [None] * group.size()
    dist.all_gather_object(everyone, obj, group=group)
    return everyone
