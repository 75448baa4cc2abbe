"""Starts the ranks and times the calls.

All backends live in the same ranks at the same time and take turns in short batches, A B A B, so
that whatever else the machine does meets all of them. A call counts as long as its slowest rank
took for it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Registers torch's own backend "fake", which does nothing: the floor under any call.
import torch.testing._internal.distributed.fake_pg

from benchmarks.machine import memcpy_gb_per_s
from benchmarks.ops import BY_PERMUTES, OPS, PERMUTES, Case


@dataclass(frozen=True)
class Plan:
    """What to measure. `batch_ms`: how long one backend runs before the next one's turn."""

    ops: tuple[str, ...]
    sizes: tuple[int, ...]
    backends: tuple[str, ...]
    rounds: int = 12
    batch_ms: float = 30.0
    hogs: int = 0


@dataclass(frozen=True)
class Row:
    """One operation, size, backend: microseconds over `samples` calls."""

    op: str
    ranks: int
    bytes: int
    backend: str
    median_us: float
    p99_us: float
    min_us: float
    samples: int


def measure(plan: Plan, ranks: int) -> tuple[list[Row], float]:
    """Run the plan on `ranks` new processes; returns the rows and memcpy's GB/s in the same run."""
    with tempfile.TemporaryDirectory(prefix="fastvideo_bench_") as folder, _hogs(plan.hogs):
        mp.spawn(_rank_main, args=(ranks, folder, plan), nprocs=ranks)
        result = torch.load(Path(folder) / "result.pt")
    return [Row(**row) for row in result["rows"]], result["memcpy"]


def _rank_main(rank: int, world: int, folder: str, plan: Plan) -> None:
    _die_with_parent()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # host names need not resolve
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    try:
        groups = {name: dist.new_group(backend=name) for name in plan.backends}
        memcpy = memcpy_gb_per_s() if rank == 0 else 0.0
        dist.barrier()
        rows = []
        for op in plan.ops:
            for size in (0,) if op == "barrier" else plan.sizes:
                rows += _measure_one(op, size, groups, plan)
                if rank == 0 and sys.stderr.isatty():
                    print(f"\r{world} ranks: {op} {size} \033[K", end="", file=sys.stderr)
        if rank == 0:
            print("\r\033[K" if sys.stderr.isatty() else "", end="", file=sys.stderr)
            torch.save({"rows": [asdict(r) for r in rows], "memcpy": memcpy}, f"{folder}/result.pt")
    finally:
        dist.destroy_process_group()


def _cases(op: str, size: int, groups: dict[str, dist.ProcessGroup]) -> dict[str, Case]:
    cases = {}
    for name, group in groups.items():
        if op not in BY_PERMUTES or name == "fastvideo":
            cases[name] = OPS[op](group, size)
        if op in BY_PERMUTES and name != "fake":
            cases[name + PERMUTES] = BY_PERMUTES[op](group, size)
    return cases


def _measure_one(
    op: str, size: int, groups: dict[str, dist.ProcessGroup], plan: Plan
) -> Iterator[Row]:
    """All backends on one operation and size; each result is compared before anything is timed."""
    cases = _cases(op, size, groups)
    counts, samples = {}, {}
    for name, case in cases.items():
        if name != "fake":
            case.verify()
        _slowest(_time_calls(case, 3))  # warm up
        typical = _slowest(_time_calls(case, 5)).median().item()
        counts[name] = min(5000, max(2, int(plan.batch_ms / 1e3 / max(typical, 1e-7))))
        samples[name] = torch.zeros(0, dtype=torch.float64)
    for _ in range(plan.rounds):
        for name, case in cases.items():
            dist.barrier()
            case.call()  # the ranks leave Gloo's barrier far apart; this call brings them together
            times = _time_calls(case, counts[name])
            samples[name] = torch.cat([samples[name], times])
    for name, case in cases.items():
        times = 1e6 * _slowest(samples[name])
        median, p99 = times.quantile(0.5).item(), times.quantile(0.99).item()
        minimum, count = times.min().item(), times.numel()
        yield Row(op, dist.get_world_size(), case.bytes, name, median, p99, minimum, count)


def _time_calls(case: Case, count: int) -> torch.Tensor:
    """Seconds of each of `count` calls on this rank: float64 [count]."""
    call, clock = case.call, time.perf_counter_ns
    marks = [clock()]
    for _ in range(count):
        call()
        marks.append(clock())
    return torch.tensor(marks).diff().double() / 1e9


def _slowest(times: torch.Tensor) -> torch.Tensor:
    """Each call's time on the rank where it took longest."""
    dist.all_reduce(times, dist.ReduceOp.MAX)
    return times


@contextmanager
def _hogs(count: int) -> Iterator[None]:
    """`count` foreign processes that keep a core busy each."""
    command = [sys.executable, "-c", "while True: pass"]
    hogs = [subprocess.Popen(command, preexec_fn=_die_with_parent) for _ in range(count)]  # noqa: PLW1509
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent's thread ends (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
