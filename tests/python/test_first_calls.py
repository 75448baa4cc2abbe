"""Two threads make the extension's first call at once, in an interpreter of their own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import threading, time
from fastvideo_dist._compat import extension

main_thread = threading.main_thread
writers = [extension().QueueWriter(f"test:{i}", 1, 2, 4096) for i in range(2)]

done = []


def slow():  # lets go of the lock, as any Python function may
    time.sleep(0.2)
    return main_thread()


def call(writer):
    try:
        writer.wait_until_ready(0.0)
    except TimeoutError:
        done.append(writer)


threading.main_thread = slow
threads = [threading.Thread(target=call, args=(writer,)) for writer in writers]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(done))
"""


def test_they_do_not_wait_for_each_other() -> None:
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "2\n"
