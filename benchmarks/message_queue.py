"""Compare ways to give one process's object to others: latency by size, interleaved in one run.

python -m benchmarks.message_queue --readers 3 --sizes 1K,10M

A sample is the time from the writer's call until the last reader holds the object; then all are
back, and the next begins. With --pause-ms the readers have had so long to fall asleep.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.__main__ import parse_size
from benchmarks.machine import describe, load_average, memcpy_gb_per_s
from benchmarks.report import human, number
from benchmarks.runner import _die_with_parent
from fastvideo_dist.message_queue import MessageQueue

ARRAY_BYTES = 64 << 10  # from here on the object is an array, below it bytes in a dictionary
WARM_UP = 12  # more than the chunks of a queue, each of which is new memory once


def make_object(size: int) -> Any:
    if size >= ARRAY_BYTES:
        return np.arange(size, dtype=np.uint8)
    return {"step": 17, "payload": os.urandom(size), "prompt": "a cat"}


def check(obj: Any, size: int) -> None:
    got = obj.nbytes if isinstance(obj, np.ndarray) else len(obj["payload"])
    if got != size:
        raise RuntimeError(f"{got} bytes arrived of {size}")


def broadcast_by_gloo(obj: Any) -> Any:
    box = [obj]
    dist.broadcast_object_list(box, 0)
    return box[0]


def by_pipes(rank: int, pipes: list[Any]) -> Callable[[Any], Any]:
    """multiprocessing's queues: one pipe to each reader."""

    def call(obj: Any) -> Any:
        if rank != 0:
            return pipes[rank - 1].get()
        for pipe in pipes:
            pipe.put(obj)
        return obj

    return call


def rank_main(
    rank: int, folder: str, plan: argparse.Namespace, pipes: list[Any], turn: Any
) -> None:
    """`turn`: int64 [1 + readers], what each has finished; shared memory."""
    _die_with_parent()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(f"{folder}/store", 1 + plan.readers)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=1 + plan.readers)
    assert dist.group.WORLD is not None
    queue = MessageQueue.create_from_process_group(
        dist.group.WORLD, plan.chunk_bytes, plan.chunks, name="benchmark"
    )
    contenders = {
        "fastvideo": queue.broadcast_object,
        "gloo": broadcast_by_gloo,
        "multiprocessing": by_pipes(rank, pipes),
    }
    turn_of = turn.numpy()
    memcpy = memcpy_gb_per_s() if rank == 0 else 0.0
    rows = []
    for size in plan.sizes:
        obj = make_object(size) if rank == 0 else None
        times: dict[str, list[Any]] = {name: [] for name in contenders}
        for _ in range(plan.rounds):
            for name, call in contenders.items():
                dist.barrier()
                times[name].append(batch(rank, call, obj, size, plan, turn_of))
        for name, batches in times.items():
            rows.append(row(name, size, torch.cat(batches)))
    queue.close()
    if rank == 0:
        Path(folder, "result.json").write_text(json.dumps({"rows": rows, "memcpy": memcpy}))
    dist.destroy_process_group()


def batch(
    rank: int, call: Callable[[Any], Any], obj: Any, size: int, plan: Any, turn: Any
) -> torch.Tensor:
    """Nanoseconds on the clock that all processes share: int64 [calls]."""
    calls = max(10, min(plan.calls, int(plan.calls * (64 << 10) / max(size, 1))))
    turn[rank] = 0
    dist.barrier()
    marks = []
    for done in range(1, 1 + WARM_UP + calls):
        if rank == 0 and plan.pause_ms:
            time.sleep(plan.pause_ms / 1e3)
        begin = time.perf_counter_ns()
        got = call(obj)
        marks.append(begin if rank == 0 else time.perf_counter_ns())
        if done == 1:
            check(got, size)
        turn[rank] = done
        while rank == 0 and turn.min() < done:
            os.sched_yield()
    return torch.tensor(marks[WARM_UP:])


def row(name: str, size: int, marks: torch.Tensor) -> dict[str, Any]:
    every = [torch.empty_like(marks) for _ in range(dist.get_world_size())]
    dist.all_gather(every, marks)
    latency = (torch.stack(every[1:]).amax(0) - every[0]).double() / 1e3
    median, p99 = latency.quantile(0.5).item(), latency.quantile(0.99).item()
    return {
        "contender": name,
        "bytes": size,
        "median_us": median,
        "p99_us": p99,
        "min_us": latency.min().item(),
        "samples": latency.numel(),
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.message_queue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--readers", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--sizes", default="1K,64K,1M,10M", help="bytes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (%(default)s)")
    parser.add_argument("--calls", type=int, default=300, help="in a turn, at 64K (%(default)s)")
    parser.add_argument("--pause-ms", type=float, default=0, help="before a call (%(default)s)")
    parser.add_argument("--chunk-bytes", default="1M", help="of the queue (%(default)s)")
    parser.add_argument("--chunks", type=int, default=4, help="of the queue (%(default)s)")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    arguments = parser.parse_args()
    arguments.sizes = [parse_size(size) for size in arguments.sizes.split(",")]
    arguments.chunk_bytes = parse_size(arguments.chunk_bytes)
    return arguments


def main() -> None:
    plan = parse_arguments()
    machine = describe()
    pipes = [multiprocessing.get_context("spawn").SimpleQueue() for _ in range(plan.readers)]
    turn = torch.zeros(1 + plan.readers, dtype=torch.int64).share_memory_()
    with tempfile.TemporaryDirectory(prefix="fastvideo_bench_") as folder:
        mp.spawn(rank_main, args=(folder, plan, pipes, turn), nprocs=1 + plan.readers)
        result = json.loads(Path(folder, "result.json").read_text())
    machine["load_after"] = load_average()
    memcpy = result["memcpy"]
    print(
        f"# {machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, commit "
        f"{machine['commit']}\n# memcpy {memcpy:.1f} GB/s; {plan.readers} readers; load "
        f"{machine['load_before']} before and {machine['load_after']} after"
    )
    print(f"{'contender':<16} {'bytes':>6} {'median us':>10} {'p99':>10} {'GB/s / memcpy':>14}")
    for line in result["rows"]:
        share = line["bytes"] / line["median_us"] / 1e3 / memcpy
        print(
            f"{line['contender']:<16} {human(line['bytes']):>6} {number(line['median_us']):>10} "
            f"{number(line['p99_us']):>10} {share:>14.2f}"
        )
    if plan.json:
        plan.json.write_text(json.dumps({"machine": machine, **result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
