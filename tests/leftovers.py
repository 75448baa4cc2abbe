"""What a test may not leave behind: names in a file system, and processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

# Names the transport could leave, in /dev/shm or where its handshake's socket lives.
_PREFIXES = ("fastvideo_dist", "fastvideo-dist", "fvd")
_SHARED_MEMORY = Path("/dev/shm")


def files(handshake_directory: str) -> set[str]:
    """Paths of ours that exist now, in /dev/shm and in the ranks' temporary directory."""
    found = set()
    for directory in (_SHARED_MEMORY, Path(handshake_directory)):
        if directory.is_dir():
            found |= {str(p) for p in directory.iterdir() if p.name.startswith(_PREFIXES)}
    return found


def processes(groups: Iterable[int]) -> list[int]:
    """Living processes (zombies aside) whose process group is one of `groups`."""
    wanted = set(groups)
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            stat = Path(f"/proc/{name}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, group = stat.rpartition(")")[2].split()[:3]
        if int(group) in wanted and state not in "ZX":
            found.append(int(name))
    return found


def wait_until_gone(groups: Iterable[int], within: float = 5.0) -> list[int]:
    """The processes of `groups` still there after `within` seconds; empty as soon as none is."""
    deadline = time.monotonic() + within
    groups = list(groups)
    while (left := processes(groups)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left
