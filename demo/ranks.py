"""What each rank does, and how the ranks are started."""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from tqdm import tqdm

from demo.attention import HEADS, attend, attend_steps, tokenize
from demo.exchange import compare, to_heads, to_sequence


@dataclass(frozen=True)
class Result:
    """`out`: attention's result [1, S, H, D]; times in seconds."""

    out: Tensor
    seconds: float
    exchange_fastvideo: float = 0.0
    exchange_gloo: float = 0.0


def run_alone(noisy: Tensor, sigma: float) -> Result:
    """The whole attention in this process, on one thread."""
    torch.set_num_threads(1)
    q, k, v = tokenize(noisy, sigma)
    start = time.perf_counter()
    with _progress(attend_steps(q.shape[1], len(HEADS)), "1 rank ") as bar:
        out = attend(q, k, v, bar.update)
    return Result(out, time.perf_counter() - start)


def run_ranks(noisy: Tensor, sigma: float, world: int) -> Result:
    """The same over `world` new processes of one thread each; returns what rank 0 gathered."""
    with tempfile.TemporaryDirectory(prefix="fastvideo_demo_") as folder:
        torch.save(noisy, Path(folder) / "noisy.pt")
        # spawn ends all ranks when one fails, and the ranks end themselves when this process dies.
        mp.spawn(_rank_main, args=(world, folder, sigma), nprocs=world)
        return Result(**torch.load(Path(folder) / "result.pt"))


def _rank_main(rank: int, world: int, folder: str, sigma: float) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # host names need not resolve
    store = dist.FileStore(f"{folder}/store", world)
    dist.init_process_group("fastvideo", store=store, rank=rank, world_size=world)
    gloo = dist.new_group(backend="gloo")
    try:
        noisy = torch.load(f"{folder}/noisy.pt")
        q, k, v = (x.tensor_split(world, dim=1)[rank] for x in tokenize(noisy, sigma))
        dist.barrier()
        start = time.perf_counter()
        gathered = _attend_sequence_parallel(q.contiguous(), k.contiguous(), v.contiguous())
        seconds = time.perf_counter() - start
        fast, slow = compare(q.contiguous(), gloo)
        if rank == 0:
            times = {"seconds": seconds, "exchange_fastvideo": fast, "exchange_gloo": slow}
            torch.save({"out": gathered, **times}, f"{folder}/result.pt")
    finally:
        dist.destroy_process_group()


def _attend_sequence_parallel(q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """My slice [1, S/W, H, D] of q, k, v -> the whole result [1, S, H, D] on rank 0, else None."""
    rank, world = dist.get_rank(), dist.get_world_size()
    q, k, v = to_heads(q), to_heads(k), to_heads(v)
    steps = attend_steps(q.shape[1], q.shape[2])
    with _progress(steps, f"{world} ranks", hide=rank != 0) as bar:
        out = to_sequence(attend(q, k, v, bar.update))
    parts = [torch.empty_like(out) for _ in range(world)] if rank == 0 else None
    dist.gather(out, parts, dst=0)
    return None if parts is None else torch.cat(parts, dim=1)


def _progress(steps: int, label: str, hide: bool = False) -> tqdm:
    """A progress bar; tqdm reads `disable=None` as "only on a terminal"."""
    return tqdm(total=steps, desc=label, unit="chunk", disable=True if hide else None)
