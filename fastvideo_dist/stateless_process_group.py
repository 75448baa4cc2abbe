"""A group of processes that exchange small objects, beside torch.distributed's global state."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import select
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, TypeVar

from torch._C._distributed_c10d import Store, TCPStore

from fastvideo_dist.local import this_node

__all__ = ["StatelessProcessGroup"]

_T = TypeVar("_T")

_DEFAULT_TIMEOUT = timedelta(minutes=5)

# Between two looks at the store; the first is short, as most answers are there already.
_SHORTEST_PAUSE_S = 50e-6
_LONGEST_PAUSE_S = 5e-3


@dataclasses.dataclass
class StatelessProcessGroup:
    """Objects between processes that may be in several groups, or in none of torch.distributed.

    For metadata: everything goes through a key-value store, and is pickled, so only processes that
    trust each other may meet there. Every wait ends at `timeout`. Messages are deleted when all
    who should have read them. One thread at a time.

    Raises, from each method that waits:
        TimeoutError: a rank did not come; names the ranks, what was waited for and how long. The
            call counts as not made: the next of its kind takes its place.
        ConnectionError: a rank that was waited for has ended, seen within some milliseconds if it
            ran on this node and the group was made by `create`; or rank 0, and the store with it.
    """

    rank: int
    world_size: int
    store: Store
    data_expiration_seconds: int = 3600
    timeout: timedelta = dataclasses.field(default=_DEFAULT_TIMEOUT, kw_only=True)

    _sent: dict[int, int] = dataclasses.field(default_factory=dict, init=False, repr=False)
    _received: dict[int, int] = dataclasses.field(default_factory=dict, init=False, repr=False)
    _broadcasts: dict[int, int] = dataclasses.field(default_factory=dict, init=False, repr=False)
    _gathers: int = dataclasses.field(default=0, init=False, repr=False)
    _barriers: int = dataclasses.field(default=0, init=False, repr=False)
    # Ranks on this node, each with a descriptor of its process that is readable once it has ended.
    _processes: dict[int, int] = dataclasses.field(default_factory=dict, init=False, repr=False)
    # Keys this rank has set, with the time; for what nobody ever fetches.
    _unread: deque[tuple[str, float]] = dataclasses.field(
        default_factory=deque, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"StatelessProcessGroup: rank {self.rank} is not in a group of {self.world_size}"
            )

    @staticmethod
    def create(
        host: str,
        port: int,
        rank: int,
        world_size: int,
        data_expiration_seconds: int = 3600,
        *,
        timeout: timedelta = _DEFAULT_TIMEOUT,
    ) -> StatelessProcessGroup:
        """Meets the other ranks at `host:port`, where rank 0 listens.

        It listens on that address alone, so with "127.0.0.1" nobody outside the host can connect.

        Raises:
            ValueError: the rank is not in the group.
            OSError: rank 0 cannot listen there.
            TimeoutError: not all ranks came within `timeout`.
        """
        if not 0 <= rank < world_size:
            raise ValueError(
                f"StatelessProcessGroup: rank {rank} is not in a group of {world_size}"
            )
        listening = _listen(host, port) if rank == 0 else None
        try:
            store = TCPStore(
                host_name=host,
                port=port,
                world_size=world_size,
                is_master=rank == 0,
                timeout=timeout,
                wait_for_workers=False,
                # The default server takes no socket that listens already.
                use_libuv=False,
                master_listen_fd=None if listening is None else listening.fileno(),
            )
        except BaseException:
            if listening is not None:
                listening.close()
            raise
        if listening is not None:
            listening.detach()  # the store's now
        group = StatelessProcessGroup(
            rank, world_size, store, data_expiration_seconds, timeout=timeout
        )
        group._watch_processes()
        return group

    def send_obj(self, obj: Any, dst: int) -> None:
        """Leaves an object for `dst`; does not wait until it is fetched."""
        self._check_peer(dst, "send_obj to")
        self.expire_data()
        number = self._sent.get(dst, 0) + 1
        self._set(f"send/{self.rank}/{dst}/{number}", obj, "send_obj")
        self._sent[dst] = number

    def recv_obj(self, src: int) -> Any:
        """The next object of `src`, in the order it sent them."""
        self._check_peer(src, "recv_obj from")
        number = self._received.get(src, 0) + 1
        key = f"send/{src}/{self.rank}/{number}"
        value = self._get(key, src, "recv_obj")
        self._received[src] = number
        self._delete(key)
        return pickle.loads(value)

    def broadcast_obj(self, obj: Any | None, src: int) -> Any:
        """The object of `src`, on every rank. Collective; `src` does not wait for the others.

        So rank 0, which serves the store, must not end right afterwards; `barrier` first.
        """
        self._check_rank(src, "broadcast_obj from")
        number = self._broadcasts.get(src, 0) + 1
        key = f"broadcast/{src}/{number}"
        if self.rank == src:
            self.expire_data()
            if self.world_size > 1:
                self._set(key, obj, "broadcast_obj")
            self._broadcasts[src] = number
            return obj
        value = self._get(key, src, "broadcast_obj")
        self._broadcasts[src] = number
        reads = self._use(lambda: self.store.add(f"{key}/read", 1), "broadcast_obj")
        if reads == self.world_size - 1:
            self._delete(key, f"{key}/read")
        return pickle.loads(value)

    def all_gather_obj(self, obj: Any) -> list[Any]:
        """The objects of all ranks, by rank. Collective."""
        self.expire_data()
        prefix = f"gather/{self._gathers + 1}"
        self._set(f"{prefix}/{self.rank}", obj, "all_gather_obj")
        others = {
            rank: self._get(f"{prefix}/{rank}", rank, "all_gather_obj")
            for rank in range(self.world_size)
            if rank != self.rank
        }
        self._leave(prefix, "all_gather_obj")
        self._gathers += 1
        return [
            obj if rank == self.rank else pickle.loads(others[rank])
            for rank in range(self.world_size)
        ]

    def barrier(self) -> None:
        """Returns when every rank has called it. Collective."""
        prefix = f"barrier/{self._barriers + 1}"
        self._use(lambda: self.store.set(f"{prefix}/{self.rank}", ""), "barrier")
        for rank in range(self.world_size):
            self._wait(f"{prefix}/{rank}", rank, "barrier")
        self._leave(prefix, "barrier")
        self._barriers += 1

    def expire_data(self) -> None:
        """Deletes what this rank set more than `data_expiration_seconds` ago."""
        while self._unread and time.monotonic() - self._unread[0][1] > self.data_expiration_seconds:
            self._delete(self._unread.popleft()[0])

    def _set(self, key: str, obj: Any, what: str) -> None:
        value: Any = pickle.dumps(obj, protocol=pickle.HIGHEST_PROTOCOL)
        self._use(lambda: self.store.set(key, value), what)
        self._unread.append((key, time.monotonic()))

    def _get(self, key: str, src: int, what: str) -> bytes:
        self._wait(key, src, what)
        value: bytes = self._use(lambda: self.store.get(key), what)
        return value

    def _leave(self, prefix: str, what: str) -> None:
        """Ends a call of all ranks. Rank 0 serves the store and goes last, as it may end then."""
        if self.rank != 0:
            self._use(lambda: self.store.set(f"{prefix}/left/{self.rank}", ""), what)
            return
        for rank in range(1, self.world_size):
            self._wait(f"{prefix}/left/{rank}", rank, what)
        self._delete(*(f"{prefix}/{rank}" for rank in range(self.world_size)))
        self._delete(*(f"{prefix}/left/{rank}" for rank in range(1, self.world_size)))

    def _use(self, call: Callable[[], _T], what: str) -> _T:
        try:
            return call()
        except RuntimeError as error:
            raise ConnectionError(
                f"{self._site(what)}: the store of rank 0 was lost: {error}"
            ) from (error)

    def _wait(self, key: str, src: int, what: str) -> None:
        """Until `src` has set the key, has ended, or the timeout has passed."""
        deadline = time.monotonic() + self.timeout.total_seconds()
        pause = _SHORTEST_PAUSE_S
        while True:
            # In this order: what a rank set before it ended is still good.
            ended = self._has_ended(src)
            if self._use(lambda: self.store.check([key]), f"{what}, waiting for rank {src}"):
                return
            if ended:
                raise ConnectionError(f"{self._site(what)}: the process of rank {src} has ended")
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{self._site(what)} waited {self.timeout.total_seconds():g} s for rank {src}, "
                    "which did not come"
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _site(self, what: str) -> str:
        return f"StatelessProcessGroup: {what} on rank {self.rank} of {self.world_size}"

    def _has_ended(self, rank: int) -> bool:
        process = self._processes.get(rank)
        if process is None:
            return False
        poll = select.poll()
        poll.register(process, select.POLLIN)
        return bool(poll.poll(0))

    def _watch_processes(self) -> None:
        """Exchanges pids, and opens a descriptor of each other process of this node. Collective."""
        processes = self.all_gather_obj((this_node(), os.getpid()))
        for rank, (node, pid) in enumerate(processes):
            if node == this_node() and rank != self.rank and pid != os.getpid():
                # It may have ended since, or the kernel refuse; the timeout is all there is then.
                with contextlib.suppress(OSError):
                    self._processes[rank] = os.pidfd_open(pid)
        weakref.finalize(self, _close_all, list(self._processes.values()))

    def _delete(self, *keys: str) -> None:
        for key in keys:
            # Gone already, or the store with rank 0: either way nothing is left.
            with contextlib.suppress(RuntimeError):
                self.store.delete_key(key)

    def _check_rank(self, rank: int, what: str) -> None:
        if not 0 <= rank < self.world_size:
            raise ValueError(
                f"StatelessProcessGroup: {what} rank {rank}, on rank {self.rank}: there are ranks "
                f"0 to {self.world_size - 1}"
            )

    def _check_peer(self, rank: int, what: str) -> None:
        self._check_rank(rank, what)
        if rank == self.rank:
            raise ValueError(f"StatelessProcessGroup: {what} rank {rank} itself")


def _close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening
