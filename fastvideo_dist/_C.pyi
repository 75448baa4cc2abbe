"""The extension module, from csrc/module.cpp."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, final

import torch
from torch._C._distributed_c10d import Backend, Store

class Options(Backend.Options):
    """Settings of one group. May be copied, deep-copied and pickled.

    Given as `pg_options`, it is copied, so one object may serve several groups.
    """

    def __init__(self, timeout: timedelta = ...) -> None: ...

    timeout: timedelta
    """Of every call that gives none itself; above 0. 30 minutes if not given."""

    group_name: str  # type: ignore[assignment]
    """For messages and the rendezvous; the same on all ranks."""

    group_desc: str
    """For messages, before the name; may be empty."""

    global_ranks_in_group: list[int]
    """For messages: the rank in the world of each rank in the group; empty if the same."""

class FastVideoBackend(Backend):
    """One rank's side of one group. Its collectives are those of torch.distributed.

    The constructor is collective over the group and blocks until all ranks have come. Dropping the
    object is like shutdown().

    Raises:
        ValueError: a rank outside the group, or options that contradict each other.
        torch.distributed.DistBackendError: not all ranks came, or they cannot share memory.
    """

    def __init__(self, store: Store, rank: int, size: int, options: Options) -> None: ...
    @property
    def options(self) -> Options: ...

    bound_device_id: torch.device | None

    def get_error(self) -> Any:
        """SUCCESS while the group is usable, as far as this rank knows; else TIMEOUT, REMOTE_ERROR
        (a rank died) or COMM_ERROR. `torch._C._distributed_c10d.ErrorType`."""

    def _wait_for_pending_works(self) -> None: ...
    def perform_nocolor_split(self, device: torch.device) -> None:
        """Does nothing: there is no parent communicator that would have to know of a split."""

    def register_mem_pool(self, *args: object, **kwargs: object) -> None:
        """Raises RuntimeError: not in this version."""

    def deregister_mem_pool(self, *args: object, **kwargs: object) -> None:
        """Raises RuntimeError: not in this version."""

@final
class Memory:
    """Bytes with the buffer protocol, one-dimensional, and whatever keeps them alive.

    Of `QueueReader.read`: the caller's own, writable, aligned to 64. Of the others: see there.
    """

    def __buffer__(self, flags: int, /) -> memoryview: ...

def memory_of(tensor: torch.Tensor) -> Memory:
    """The memory of a dense CPU tensor of any dtype and order of dimensions, in memory's order. It
    is the tensor's own: writable, and kept by the result.

    Raises:
        ValueError: another device or layout, or strides that leave gaps.
        TypeError: it has no memory of its own, as DTensors and FakeTensors.
    """

@final
class QueueWriter:
    """The writing end of a ring in shared memory; csrc/shm/ring.h says what it promises.

    Timeouts are seconds, None for none. Calls are made by one thread at a time.

    Raises:
        ValueError: sizes that cannot be.
        torch.distributed.DistBackendError: see docs/errors.md; here and in every call.
    """

    def __init__(self, name: str, readers: int, chunks: int, chunk_bytes: int) -> None: ...
    @property
    def address(self) -> bytes:
        """What QueueReader takes, in a process of the same user and host, while this one lives."""

    def write(self, parts: Sequence[Any], timeout: float | None) -> None:
        """Sends a message: objects with the buffer protocol, contiguous. Raises TimeoutError.

        A part of 64 KiB and more that is a bytes object, or a view of a whole one, arrives as
        bytes.
        """

    def begin_raw(self, timeout: float | None) -> Memory:
        """A chunk of the ring itself, to be filled in place before end_raw. Raises TimeoutError."""

    def end_raw(self, publish: bool) -> None: ...
    def wait_until_ready(self, timeout: float | None) -> None:
        """Until every reader has attached. Raises TimeoutError."""

    def close(self) -> None:
        """From any thread; calls waiting in others raise."""

@final
class QueueReader:
    """One reading end of a ring; as QueueWriter.

    Raises:
        ValueError: a malformed or foreign address, no such reader, or one that is taken.
    """

    def __init__(self, address: bytes, reader: int) -> None: ...
    def read(self, timeout: float | None) -> list[Memory | bytes]:
        """The parts of the next message. Raises TimeoutError."""

    def begin_raw(self, timeout: float | None) -> Memory:
        """The next message of begin_raw in the ring itself, read-only, until end_raw."""

    def end_raw(self) -> None: ...
    def wait_until_ready(self, timeout: float | None) -> None: ...
    def close(self) -> None: ...

@final
class Buffer:
    """Contiguous elements in memory, which it keeps; made by `buffer_of`."""

    count: int
    """Elements."""
    dtype: str
    """The element type, such as "float32"."""
    is_cpu: bool
    device: torch.device

    def first(self) -> float:
        """The first element; there must be one."""

def buffer_of(object: Any, wants: bool, dtype: str | None = None) -> Buffer | None:
    """The memory of a tensor or of an object with the buffer protocol; None for all else.

    Args:
        wants: it is to be written.
        dtype: of the elements, where the object exports them under another name.

    Raises:
        TypeError: no dense tensor, or an element type NCCL has not.
        ValueError: not contiguous; read-only and `wants`. The texts continue "sendbuf ...".
    """

def is_read_only(capsule: Any) -> bool:
    """Whether a capsule of DLPack, which nobody has taken yet, says so."""

def alike(a: Buffer, b: Buffer) -> bool:
    """Whether element type and device are the same."""

def apart(
    part: Buffer, part_count: int, whole: Buffer, whole_count: int, in_place: int | None
) -> bool:
    """Whether the first elements of both share no memory, or `part` begins at element `in_place`
    of `whole`."""

@final
class Reduction:
    """How contributions are combined: SUM, PRODUCT, MAX, MIN, AVG, PREMUL_SUM by a factor; or the
    SUM of integers, multiplied by a number modulo 2^64."""

    def __init__(self, op: str, factor: float = 1.0, multiplier: int = 1) -> None: ...

@final
class Transfer:
    """A send or receive under way. Dropping it before its end gives it up."""

    def wait(self) -> None: ...

def create_unique_id() -> bytes:
    """128 bytes: the address of a new place where ranks can meet."""

@final
class Communicator:
    """One rank's place in a group, without torch.distributed; csrc/face.h.

    The constructor is collective, as every call; `timeout` is that of all, in seconds. Calls check
    nothing that one rank can tell by itself: counts fit, types agree, buffers are on one device.
    `stream` is a handle of that device; None: torch's current one, and on the CPU. The
    interpreter's lock is free during calls.

    Raises:
        ValueError: an id that is none, was used, or is of another host or user; a reduction that
            has no meaning for the type.
        NotImplementedError: no transport for the device; a reduction of float8.
        torch.distributed.DistBackendError: as docs/errors.md says.
    """

    def __init__(
        self, unique_id: bytes, rank: int, size: int, name: str, timeout: float
    ) -> None: ...
    @property
    def name(self) -> str: ...
    def split(self, place: str, rank: int, size: int, name: str) -> Communicator:
        """Collective over the ranks that give the same `place`, which no earlier group has had."""

    def reduce(
        self,
        send: Buffer,
        recv: Buffer | None,
        count: int,
        reduction: Reduction,
        root: int | None,
        stream: int | None,
    ) -> None: ...
    def broadcast(
        self, send: Buffer | None, recv: Buffer, root: int, stream: int | None
    ) -> None: ...
    def gather(
        self, send: Buffer, recv: Buffer | None, root: int | None, stream: int | None
    ) -> None: ...
    def scatter(self, send: Buffer | None, recv: Buffer, root: int, stream: int | None) -> None: ...
    def reduce_scatter(
        self, send: Buffer, recv: Buffer, count: int, reduction: Reduction, stream: int | None
    ) -> None: ...
    def all_to_all(self, send: Buffer, recv: Buffer, count: int, stream: int | None) -> None: ...
    def send(self, buffer: Buffer, peer: int, stream: int | None) -> Transfer: ...
    def recv(self, buffer: Buffer, peer: int, stream: int | None) -> Transfer: ...
    def copy(self, send: Buffer, recv: Buffer, stream: int | None) -> None:
        """Within this rank's memory."""

    def abort(self, reason: str) -> None:
        """Ends every call under way on all ranks. From any thread."""

    def close(self) -> None:
        """Leaves the group."""

def load_nccl(path: str | None = None) -> tuple[str, str]:
    """Version and path of the NCCL library that this process uses. It is loaded, if no group has
    needed it yet: from `path`, or from where docs/nccl.md says.

    Raises:
        NotImplementedError: no library that can be used; lists what was tried.
        ValueError: `path` is not the library that is used already.
    """

def current_stream(device: torch.device) -> int:
    """The handle of this thread's current stream of a GPU, as torch's C++ knows it."""

def exchange_path(group_name: str) -> str:
    """See `fastvideo_dist.ops.exchange_path`."""

def copy_on_gpu(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    """Copies each source to its target, all in one kernel on the current stream: what the exchange
    packs and unpacks with. Any strides; targets may not overlap. Autograd does not see it.

    Raises:
        ValueError: not all are on one GPU, or a pair differs in shape or dtype.
        NotImplementedError: the package has no kernels.
    """

def use_kernels(kernels: object | None, reason: str = "") -> None:
    """Has this process use the kernels of `_C_cuda.KERNELS`, a capsule, for tensors on GPUs.

    None: there are none, for this reason, which errors will name.

    Raises:
        NotImplementedError: the kernels are of another version of the package.
        ValueError: a capsule of something else.
    """

def build_info() -> dict[str, Any]:
    """What it was compiled with: torch, compiler, cplusplus, transports."""
