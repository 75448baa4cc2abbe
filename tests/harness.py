"""Ranks for tests: `run_ranks(fn, world_size, **kwargs)` on processes that stay between tests.

A worker costs seconds (it imports torch); a group costs milliseconds. So the workers are kept for
the session and each call makes a fresh group, with keys of its own in one store that lives in this
process. Whatever fails ends the workers; the next call starts new ones, so no test suffers from the
one before. Ranks that are to be killed or stopped belong to fresh.py.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

import leftovers
from rank_process import Answer, Place, Task, import_path, serve, warm_up

# "gloo" checks the tests themselves against a backend that is known; see README.md.
BACKEND = os.environ.get("TEST_BACKEND", "fastvideo")
LARGEST_WORLD = 5
DEADLINE_S = 60.0
GROUP_TIMEOUT_S = 30.0  # below the deadline: the backend's own error says more than our stacks
_GRACE_S = 3.0  # for the other ranks' errors once one has failed

# forkserver: each rank is a fork of a process that has imported torch and started nothing.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["numpy", "torch", "torch.distributed"])


class RanksFailed(AssertionError):
    """One or more ranks failed, died or did not finish; the text shows every rank."""


class Session:
    """What lives as long as pytest: the store, the ranks' directory and their names."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._store: dist.TCPStore | None = None
        self._directory: str | None = None

    @property
    def directory(self) -> str:
        if self._directory is None:
            # Short: the path of a Unix socket has 107 characters.
            self._directory = tempfile.mkdtemp(prefix="ranks-")
        return self._directory

    def place(self) -> Place:
        if self._store is None:
            self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        return Place(self.directory, str(next(self._numbers)), self._store.port, BACKEND)

    def new_prefix(self) -> str:
        return f"call-{next(self._numbers)}"

    def close(self) -> None:
        self._store = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


session = Session()


def stacks_of(processes: Sequence[BaseProcess], places: Sequence[Place]) -> list[str]:
    """All threads' Python stacks of each process, asked for by SIGUSR1; needs no GIL there."""
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGUSR1)
    return [_settled_text(Path(place.stacks_path)) for place in places]


def _settled_text(path: Path, within: float = 2.0) -> str:
    """The file's text once it is there and grows no more."""
    deadline, text = time.monotonic() + within, ""
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = path.read_text(errors="replace") if path.exists() else ""
        if now and now == text:
            return text
        text = now
    return text or "(no stack: stopped, or dead)"


def end(processes: Sequence[BaseProcess]) -> None:
    """SIGKILL for the processes and all they have forked."""
    for process in processes:
        if process.pid is None:
            continue
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what a dead rank has left
        if process.is_alive():  # it may not have its own process group yet
            process.kill()
    for process in processes:
        process.join(10)


class Pool:
    """Worker ranks 0 to 4. A world of n uses the first n."""

    def __init__(self) -> None:
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._places: list[Place] = []
        self._baseline: list[collections.Counter[str]] = []

    def call(self, path: str, world_size: int, kwargs: dict[str, Any], timeout: float) -> list[Any]:
        if not 1 <= world_size <= LARGEST_WORLD:
            raise ValueError(f"world size {world_size}: the pool has 1 to {LARGEST_WORLD} ranks")
        if not self._processes:
            self._start()
        answers = self._exchange(path, world_size, kwargs, timeout)
        self._check_descriptors(path, answers)
        return [answer.value for answer in answers]

    def _start(self) -> None:
        for _ in range(LARGEST_WORLD):
            ours, theirs = context.Pipe()
            place = session.place()
            process = context.Process(target=serve, args=(theirs, place), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._pipes.append(ours)
            self._places.append(place)
        answers = self._exchange(import_path(warm_up), LARGEST_WORLD, {}, DEADLINE_S)
        self._baseline = [answer.descriptors for answer in answers]

    def _exchange(
        self, path: str, world_size: int, kwargs: dict[str, Any], timeout: float
    ) -> list[Answer]:
        prefix = session.new_prefix()
        for rank in range(world_size):
            task = Task(path, kwargs, rank, world_size, prefix, min(GROUP_TIMEOUT_S, timeout / 2))
            try:
                self._pipes[rank].send_bytes(pickle.dumps(task))
            except OSError:
                pass  # it is dead; the wait below sees the end of its pipe
        answers = self._collect(world_size, timeout)
        if any(answer is None or answer.late or answer.error for answer in answers.values()):
            self._fail(path, world_size, answers, timeout)
        return [answers[rank] for rank in range(world_size)]  # type: ignore[misc]

    def _collect(self, world_size: int, timeout: float) -> dict[int, Answer | None]:
        """Answers in order of arrival, None for a rank that died; the late ones come last."""
        pending = {self._pipes[rank]: rank for rank in range(world_size)}
        answers: dict[int, Answer | None] = {}
        deadline = time.monotonic() + timeout
        while pending and (left := deadline - time.monotonic()) > 0:
            for pipe in wait(list(pending), left):
                rank = pending.pop(pipe)  # type: ignore[arg-type]
                try:
                    answers[rank] = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]
                except (EOFError, OSError):
                    answers[rank] = None
                if (answer := answers[rank]) is None or answer.error:
                    deadline = min(deadline, time.monotonic() + _GRACE_S)
        for rank in pending.values():
            answers[rank] = Answer(late=True)
        return answers

    def _fail(  # shows every rank, then ends them all
        self, path: str, world_size: int, answers: dict[int, Answer | None], timeout: float
    ) -> None:
        late = [rank for rank, answer in answers.items() if answer and answer.late]
        stacks = stacks_of(
            [self._processes[rank] for rank in late], [self._places[rank] for rank in late]
        )
        parts = [f"{path} on {world_size} ranks:"]
        for rank, answer in answers.items():
            title = f"rank {rank}"
            if answer is None:
                self._processes[rank].join(5)
                parts.append(f"{title} died, exit code {self._processes[rank].exitcode}")
            elif rank in late:
                stack = stacks[late.index(rank)]
                parts.append(f"{title} did not finish (limit {timeout:g} s); it was at\n{stack}")
            elif answer.error:
                parts.append(f"{title} raised\n{answer.error}")
            else:
                parts.append(f"{title} finished")
        self.discard()
        raise RanksFailed("\n--- ".join(parts))

    def _check_descriptors(self, path: str, answers: list[Answer]) -> None:
        """After destroy a rank holds what it held after the warm-up, within two seconds."""
        deadline = time.monotonic() + 2.0
        for rank, answer in enumerate(answers):
            now = answer.descriptors
            while (grown := now - self._baseline[rank]) and time.monotonic() < deadline:
                self._pipes[rank].send_bytes(pickle.dumps(None))
                now = pickle.loads(self._pipes[rank].recv_bytes()).descriptors
            if grown:
                self.discard()
                raise RanksFailed(f"{path}: rank {rank} still holds, after destroy, {dict(grown)}")

    def process_groups(self) -> list[int]:
        return [process.pid for process in self._processes if process.pid is not None]

    def discard(self) -> None:
        """Ends the workers at once; the next call starts new ones."""
        end(self._processes)
        self.__init__()  # type: ignore[misc]

    def close(self) -> None:
        """Lets the workers end by themselves, as a user's program does, and checks that they do."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(20)
        codes = [process.exitcode for process in self._processes]
        groups = self.process_groups()
        left = leftovers.wait_until_gone(groups)
        self.discard()
        if any(codes) or left:
            raise RanksFailed(f"the ranks ended with {codes} and left the processes {left}")


pool = Pool()


def run_ranks(
    fn: Callable[..., Any], world_size: int, *, timeout: float = DEADLINE_S, **kwargs: Any
) -> list[Any]:
    """Calls `fn(rank, world_size, **kwargs)` on every rank of a fresh default group.

    Args:
        fn: a function at module level; it is imported by its path in each rank.
        world_size: 1 to 5.
        timeout: seconds for the whole call; the group's own timeout is shorter.
        kwargs: picklable, equal on all ranks.

    Returns:
        What each rank returned, by rank.

    Raises:
        RanksFailed: with the traceback of every rank, the first to fail first; with the stacks of
            those that did not finish; or naming the descriptors a rank kept.
    """
    return pool.call(import_path(fn), world_size, kwargs, timeout)
