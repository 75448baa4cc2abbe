"""Compare FastVideo's calls on dictionaries and objects, here and as FastVideo makes them on Gloo.

python -m benchmarks.layer --ranks 2,4

A call counts as long as its slowest rank took for it. Both live in the same ranks and take turns.
"""

import argparse
import json
import os
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.machine import describe, load_average, memcpy_gb_per_s
from benchmarks.report import number
from benchmarks.runner import _die_with_parent
from fastvideo_dist import parallel_state as ps

ROUNDS = 8
Call = Callable[[], Any]


def tensor_dict_by_gloo(tensors: dict[str, Any] | None, group: dist.ProcessGroup) -> dict[str, Any]:
    """The metadata as an object, in two broadcasts, then a broadcast for each tensor."""
    if dist.get_rank(group) == 0:
        assert tensors is not None
        described = [(key, x.dtype, x.shape) for key, x in tensors.items()]
        dist.broadcast_object_list([described], src=0, group=group)
        result = tensors
    else:
        box: list[Any] = [None]
        dist.broadcast_object_list(box, src=0, group=group)
        result = {key: torch.empty(shape, dtype=dtype) for key, dtype, shape in box[0]}
    works = [dist.broadcast(x, src=0, group=group, async_op=True) for x in result.values()]
    for work in works:
        work.wait()
    return result


def object_by_gloo(obj: Any, group: dist.ProcessGroup) -> Any:
    box = [obj]
    dist.broadcast_object_list(box, src=0, group=group)
    return box[0]


def cases(rank: int, gloo: dist.ProcessGroup) -> dict[str, dict[str, Call]]:
    """Of each case the contenders; an argument of all ranks but 0 is None, as in FastVideo."""
    ours, queue = ps.get_sp_group(), ps.get_tp_group()

    def given(obj: Any) -> Any:
        return obj if rank == 0 else None

    tensors = given({f"layer.{n}": torch.full((1 << 18,), float(n)) for n in range(20)})
    result: dict[str, dict[str, Call]] = {
        "broadcast_tensor_dict, 20 of 1 MB": {
            "fastvideo": lambda: ours.broadcast_tensor_dict(tensors),
            "gloo": lambda: tensor_dict_by_gloo(tensors, gloo),
        }
    }
    for name, obj in {
        "1 KB": {"step": 17, "payload": os.urandom(1000), "prompt": "a cat"},
        "10 MB, array": np.ones(10 << 20, dtype=np.uint8),
        "10 MB, bytes": bytes(10 << 20),
    }.items():
        mine = given(obj)
        result[f"broadcast_object, {name}"] = {
            "fastvideo": lambda mine=mine: ours.broadcast_object(mine),  # type: ignore[misc]
            "queue": lambda mine=mine: queue.broadcast_object(mine),  # type: ignore[misc]
            "gloo": lambda mine=mine: object_by_gloo(mine, gloo),  # type: ignore[misc]
        }
    return result


def rank_main(rank: int, world: int, folder: str) -> None:
    _die_with_parent()
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("fastvideo", store=store, rank=rank, world_size=world)
    ps.init_distributed_environment(world, rank)
    ps.initialize_model_parallel(world, world)
    gloo = dist.new_group(backend="gloo")
    assert isinstance(gloo, dist.ProcessGroup)
    rows = []
    for case, contenders in cases(rank, gloo).items():
        samples: dict[str, list[torch.Tensor]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, call in contenders.items():
                samples[name].append(batch(call, "MB" in case))
        for name, parts in samples.items():
            times = torch.cat(parts)
            dist.all_reduce(times, dist.ReduceOp.MAX)
            median, p99 = times.quantile(0.5).item(), times.quantile(0.99).item()
            rows.append({"case": case, "ranks": world, "contender": name, "median_us": median})
            rows[-1] |= {"p99_us": p99, "samples": times.numel()}
    if rank == 0:
        spent = min(timeit.repeat(ps.get_sp_group, number=100_000, repeat=5)) / 1e5
        rows.append({"case": "get_sp_group()", "ranks": world, "contender": "fastvideo"})
        rows[-1] |= {"median_us": spent * 1e6, "p99_us": spent * 1e6, "samples": 5}
        Path(folder, "rows.json").write_text(json.dumps(rows))
    ps.cleanup_dist_env_and_memory()


def batch(call: Call, large: bool) -> torch.Tensor:
    """Microseconds of each call on this rank; all begin together."""
    times = []
    for _ in range(8 if large else 100):
        dist.barrier()
        times.append(timeit.timeit(call, number=1) * 1e6)
    return torch.tensor(times[2:], dtype=torch.float64)


def measure(world: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="fastvideo_bench_") as folder:
        mp.spawn(rank_main, args=(world, folder), nprocs=world)
        rows: list[dict[str, Any]] = json.loads(Path(folder, "rows.json").read_text())
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layer",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", default="2,4", help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    arguments = parser.parse_args()
    machine = describe()
    rows = [row for world in arguments.ranks.split(",") for row in measure(int(world))]
    machine["load_after"] = load_average()
    print(
        f"# {machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, commit "
        f"{machine['commit']}\n# memcpy {memcpy_gb_per_s():.1f} GB/s; load "
        f"{machine['load_before']} before and {machine['load_after']} after"
    )
    print(f"{'case':<34} {'ranks':>5} {'contender':<10} {'median us':>10} {'p99':>10} {'times':>6}")
    first: dict[str, Any] = {}
    for row in rows:
        if row["contender"] == "fastvideo":
            first = row
        times = row["median_us"] / first["median_us"]
        print(
            f"{row['case']:<34} {row['ranks']:>5} {row['contender']:<10} "
            f"{number(row['median_us']):>10} {number(row['p99_us']):>10} {times:>6.1f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
