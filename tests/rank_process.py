"""What runs inside the process of one rank: its set-up, the pool's task loop and fresh ranks.

The parent's side is in harness.py (persistent ranks) and fresh.py (ranks of their own).
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import datetime
import faulthandler
import gc
import importlib
import os
import pickle
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a rank lives: everything it needs to know before it can do anything."""

    directory: str  # TMPDIR and XDG_RUNTIME_DIR of the rank; its stacks are written here
    label: str  # unique in the session, for file names
    store_port: int  # of the TCPStore in the parent
    backend: str

    @property
    def stacks_path(self) -> str:
        return os.path.join(self.directory, f"stacks-{self.label}.txt")

    def connect(self, prefix: str) -> dist.PrefixStore:
        """A client of the parent's store that sees only the keys below `prefix`."""
        return dist.PrefixStore(prefix, dist.TCPStore("127.0.0.1", self.store_port))


@dataclasses.dataclass(frozen=True)
class Task:
    """One call of `function` on one rank of a fresh group."""

    function: str  # "module:qualified.name"
    kwargs: dict[str, Any]
    rank: int
    world_size: int
    prefix: str  # of the group's keys in the store
    group_timeout_s: float


@dataclasses.dataclass
class Answer:
    """What a pool rank sends back; `descriptors` counts its open ones by kind afterwards."""

    value: Any = None
    error: str | None = None  # the formatted traceback
    late: bool = False  # set by the parent: nothing came before the deadline
    descriptors: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)


def import_path(function: Callable[..., Any]) -> str:
    """ "module:name" of a function at module level, so that a failure points at a real line."""
    if "<" in function.__qualname__:
        raise ValueError(f"{function.__qualname__} is no function at module level")
    return f"{function.__module__}:{function.__qualname__}"


def load(path: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def become_rank(place: Place) -> None:
    """Settles the process: it dies with its parent, dumps stacks on SIGUSR1, uses one thread."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)  # what a test forks in a rank is found, and ended, by the process group
    os.environ.update(TMPDIR=place.directory, XDG_RUNTIME_DIR=place.directory, OMP_NUM_THREADS="1")
    tempfile.tempdir = None
    # A shell ignores Ctrl-C for what it runs in the background, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    stacks = open(place.stacks_path, "w")  # noqa: SIM115  (lives as long as the process)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    become_rank.stacks = stacks  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    torch.manual_seed(0)


def open_descriptors() -> collections.Counter[str]:
    """Open descriptors of the kinds a transport owns (sockets, memfd, pidfd, eventfd), by kind."""
    kinds: collections.Counter[str] = collections.Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one listdir itself had open
        if target.startswith(("socket:", "anon_inode:", "/memfd:", "/dev/shm/")):
            kinds[target.split("[")[0] if target.startswith("socket:") else target] += 1
    return kinds


def warm_up(rank: int, world_size: int) -> None:
    """Makes every rank meet every other, so that what the domain keeps per process is there."""
    small, large = torch.ones(1), torch.ones(1 << 20)
    for tensor in (small, large):
        dist.all_reduce(tensor)
        assert float(tensor[0]) == world_size, f"rank {rank}: all_reduce gave {tensor[0]}"
    for step in range(1, world_size):
        sent = dist.isend(large, (rank + step) % world_size)
        dist.recv(torch.empty_like(large), (rank - step) % world_size)
        sent.wait()


def _run(task: Task, store: dist.Store) -> Any:
    torch.manual_seed(0)
    dist.init_process_group(
        _run.backend,  # type: ignore[attr-defined]
        store=dist.PrefixStore(task.prefix, store),
        rank=task.rank,
        world_size=task.world_size,
        timeout=datetime.timedelta(seconds=task.group_timeout_s),
    )
    value = load(task.function)(task.rank, task.world_size, **task.kwargs)
    # Not in a `finally`: after a failure the process is ended anyway, and a destroy that
    # hangs would hide the traceback.
    if dist.is_initialized():
        dist.destroy_process_group()
    return value


def serve(pipe: Connection, place: Place) -> None:
    """A pool rank: tasks in, answers out, until the pipe closes."""
    become_rank(place)
    _run.backend = place.backend  # type: ignore[attr-defined]
    store = place.connect("pool")
    while True:
        try:
            task = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        answer = Answer()
        if isinstance(task, Task):
            try:
                answer.value = _run(task, store)
            except BaseException:
                answer.error = traceback.format_exc()
        else:  # asked to count again: what only the collector frees is no leak
            gc.collect()
        answer.descriptors = open_descriptors()
        # Plain pickle: multiprocessing's own would move tensors through shared memory.
        pipe.send_bytes(pickle.dumps(answer))


@dataclasses.dataclass
class Report:
    """What the function of a fresh rank came to. `at` is CLOCK_MONOTONIC, one for the host."""

    value: Any = None
    types: tuple[str, ...] = ()  # names of the exception's class and its bases
    text: str = ""  # str(exception)
    traceback: str = ""
    at: float = 0.0


class Control:
    """A fresh rank's line to the test: `reached` tells it a point, `wait_for` waits for a word."""

    def __init__(self, pipe: Connection, place: Place, rank: int, world_size: int, prefix: str):
        self.rank = rank
        self.world_size = world_size
        self.place = place
        self.prefix = prefix
        self._pipe = pipe

    def init(self, timeout_s: float = 30.0, again: str = "", **kwargs: Any) -> None:
        """init_process_group on the test's store; `again` names a further group on it."""
        dist.init_process_group(
            self.place.backend,
            store=self.place.connect(self.prefix + again),
            rank=self.rank,
            world_size=self.world_size,
            timeout=datetime.timedelta(seconds=timeout_s),
            **kwargs,
        )

    def reached(self, point: str, **facts: Any) -> None:
        self._pipe.send_bytes(pickle.dumps((point, {**facts, "at": time.monotonic()})))

    def wait_for(self, word: str) -> None:
        said = pickle.loads(self._pipe.recv_bytes())
        if said != word:
            raise RuntimeError(f"rank {self.rank} waited for {word!r} and was told {said!r}")


def describe(error: BaseException) -> Report:
    names = tuple(cls.__name__ for cls in type(error).__mro__)
    formatted = "".join(traceback.format_exception(error))
    return Report(types=names, text=str(error), traceback=formatted, at=time.monotonic())


def run_fresh(
    pipe: Connection, place: Place, rank: int, world_size: int, prefix: str, path: str, kwargs: Any
) -> None:
    """A fresh rank: one function, one report, and the interpreter's ordinary end."""
    become_rank(place)
    try:
        value = load(path)(Control(pipe, place, rank, world_size, prefix), **kwargs)
        report = Report(value=value, at=time.monotonic())
    except BaseException as error:
        report = describe(error)
    pipe.send_bytes(pickle.dumps(report))
