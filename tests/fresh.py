"""Ranks that live for one test, to be killed, stopped or left alone: `fresh_ranks`.

The test steers by conditions: a rank reports a point (`Control.reached`), the test waits for it,
then acts. Times are CLOCK_MONOTONIC, the same clock in every process of the host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import leftovers
from harness import RanksFailed, context, end, session, stacks_of
from rank_process import Place, Report, import_path, run_fresh


@dataclasses.dataclass
class Outcome:
    """How one rank ended."""

    rank: int
    report: Report | None  # None: it was ended before it could say
    exitcode: int | None  # negative: the signal

    @property
    def raised(self) -> bool:
        return self.report is not None and bool(self.report.types)

    def __str__(self) -> str:
        if self.report is None:
            return f"rank {self.rank} ended with exit code {self.exitcode} and no report"
        said = self.report.traceback if self.raised else f"returned {self.report.value!r}"
        return f"rank {self.rank} (exit code {self.exitcode}): {said}"


class FreshRanks:
    """The parent's side of one world of fresh ranks."""

    def __init__(self, path: str, world_size: int, kwargs: dict[str, Any], prefix: str):
        self.prefix = prefix
        self._path = path
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._places: list[Place] = []
        self._points: list[dict[str, dict[str, Any]]] = [{} for _ in range(world_size)]
        self._reports: list[Report | None] = [None] * world_size
        self._open = set(range(world_size))
        for rank in range(world_size):
            self._start(rank, world_size, kwargs)

    def _start(self, rank: int, world_size: int, kwargs: dict[str, Any]) -> None:
        ours, theirs = context.Pipe()
        place = session.place()
        args = (theirs, place, rank, world_size, self.prefix, self._path, kwargs)
        # No daemon: a daemon may not have children of its own, and some of these fork.
        process = context.Process(target=run_fresh, args=args)
        process.start()
        theirs.close()
        self._processes.append(process)
        self._pipes.append(ours)
        self._places.append(place)

    def pid(self, rank: int) -> int:
        pid = self._processes[rank].pid
        assert pid is not None
        return pid

    def signal(self, rank: int, number: signal.Signals) -> float:
        """Sends a signal and returns the moment before it was sent."""
        at = time.monotonic()
        os.kill(self.pid(rank), number)
        return at

    def kill(self, rank: int) -> float:
        return self.signal(rank, signal.SIGKILL)

    def tell(self, rank: int, word: str) -> None:
        self._pipes[rank].send_bytes(pickle.dumps(word))

    def wait_until(
        self, point: str, ranks: list[int] | None = None, within: float = 60.0
    ) -> list[dict[str, Any]]:
        """Waits until the ranks (default: all) have reached `point`; returns what they told."""
        wanted = list(range(len(self._pipes))) if ranks is None else ranks
        deadline = time.monotonic() + within
        while missing := [rank for rank in wanted if point not in self._points[rank]]:
            gone = [rank for rank in missing if rank not in self._open]
            if gone or not self._pump(deadline - time.monotonic()):
                self._fail(f"ranks {missing} did not reach {point!r} within {within:g} s")
        return [self._points[rank][point] for rank in wanted]

    def wait_until_asleep(self, rank: int, within: float = 60.0) -> None:
        """Waits until the rank's main thread sleeps in the kernel: what it called has begun.

        Between a `reached` and the call that follows it nothing sleeps, if no other thread of the
        rank runs Python.
        """
        deadline = time.monotonic() + within
        stat = Path(f"/proc/{self.pid(rank)}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "S":
            if time.monotonic() > deadline:
                self._fail(f"rank {rank} did not fall asleep within {within:g} s")
            time.sleep(0.001)

    def outcomes(self, ranks: list[int] | None = None, within: float = 30.0) -> list[Outcome]:
        """Waits until the ranks (default: all) have ended, interpreter and all."""
        wanted = list(range(len(self._pipes))) if ranks is None else ranks
        deadline = time.monotonic() + within
        while self._open & set(wanted):
            if not self._pump(deadline - time.monotonic()):
                self._fail(f"ranks {wanted} did not all end within {within:g} s")
        for rank in wanted:
            self._processes[rank].join(max(0.1, deadline - time.monotonic()))
            if self._processes[rank].exitcode is None:
                self._fail(f"rank {rank} did not exit within {within:g} s")
        return [self._outcome(rank) for rank in wanted]

    def values(self, within: float = 30.0) -> list[Any]:
        """What each rank returned, by rank, once all have ended; none may have raised."""
        outcomes = self.outcomes(within=within)
        for outcome in outcomes:
            assert outcome.report is not None, str(outcome)
            assert not outcome.raised, str(outcome)
        return [outcome.report.value for outcome in outcomes if outcome.report]

    def _outcome(self, rank: int) -> Outcome:
        return Outcome(rank, self._reports[rank], self._processes[rank].exitcode)

    def _pump(self, left: float) -> bool:
        """Takes in what the ranks say; False when `left` seconds brought nothing."""
        pipes = {self._pipes[rank]: rank for rank in self._open}
        sentinels = {self._processes[rank].sentinel: rank for rank in self._open}
        ready = wait([*pipes, *sentinels], max(0.0, left))
        for source in ready:
            if (rank := pipes.get(source)) is not None:  # type: ignore[call-overload]
                self._take(rank)
        for source in ready:
            # A forked child may hold the pipe's other end: the process's own end is the proof.
            rank = sentinels.get(source)  # type: ignore[call-overload]
            if rank is not None and rank in self._open:
                while rank in self._open and self._pipes[rank].poll():
                    self._take(rank)
                self._open.discard(rank)
        return bool(ready)

    def _take(self, rank: int) -> None:
        try:
            said = pickle.loads(self._pipes[rank].recv_bytes())
        except (EOFError, OSError):
            self._open.discard(rank)
            return
        if isinstance(said, Report):
            self._reports[rank] = said
        else:
            point, facts = said
            self._points[rank][point] = facts

    def _fail(self, what: str) -> None:
        stacks = stacks_of(self._processes, self._places)
        parts = [f"{self._path}: {what}"]
        for rank, stack in enumerate(stacks):
            points = ", ".join(self._points[rank]) or "nothing"
            parts.append(f"{self._outcome(rank)}\nreached {points}; it was at\n{stack}")
        raise RanksFailed("\n--- ".join(parts))

    def close(self, allow_orphans: bool) -> None:
        groups = [self.pid(rank) for rank in range(len(self._processes))]
        ended = all(process.exitcode is not None for process in self._processes)
        orphans = leftovers.processes(groups) if ended and not allow_orphans else []
        end(self._processes)
        if left := leftovers.wait_until_gone(groups) or orphans:
            raise RanksFailed(f"{self._path} left the processes {left}")


@contextlib.contextmanager
def fresh_ranks(
    fn: Callable[..., Any],
    world_size: int,
    *,
    prefix: str | None = None,
    allow_orphans: bool = False,
    **kwargs: Any,
) -> Iterator[FreshRanks]:
    """Runs `fn(control, **kwargs)` in `world_size` processes of their own.

    The function makes its group itself (`control.init()`). Leaving the block ends all processes.

    Args:
        prefix: of the keys in the store; give an earlier world's to start again on its address.
        allow_orphans: the test forks in a rank on purpose.
    """
    ranks = FreshRanks(import_path(fn), world_size, kwargs, prefix or session.new_prefix())
    try:
        yield ranks
    finally:
        ranks.close(allow_orphans)
