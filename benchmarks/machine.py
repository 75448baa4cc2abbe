"""What the numbers were measured on, and how fast this machine copies memory."""

import os
import platform
import subprocess
import time
from pathlib import Path

import torch


def describe() -> dict[str, object]:
    """CPU, cores, memory, kernel, torch and commit, as JSON would hold them."""
    return {
        "cpu": _first(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": load_average(),
        "commit": _commit(),
    }


def load_average() -> float:
    """Runnable processes of the whole machine, averaged over the last minute."""
    return round(os.getloadavg()[0], 2)


def memcpy_gb_per_s(size: int = 64 << 20, rounds: int = 9) -> float:
    """Bytes copied per second by one thread between two buffers beyond the caches, in 1e9."""
    source, target = torch.ones(size, dtype=torch.uint8), torch.ones(size, dtype=torch.uint8)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - start)
    return size / sorted(times)[rounds // 2] / 1e9


def _first(path: Path, key: str) -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return "unknown"
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown"
    )


def _commit() -> str:
    """The commit of this checkout, with + where files differ from it; unknown without git."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
