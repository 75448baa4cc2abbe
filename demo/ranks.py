"""What each rank does, and how the ranks are started."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from tqdm import tqdm

from demo.attention import HEADS, attend, attend_steps, tokenize
from demo.exchange import compare, to_heads, to_sequence
from fastvideo_dist.communication_op import (
    sequence_model_parallel_all_gather,
    sequence_model_parallel_shard,
    tensor_model_parallel_all_gather,
)
from fastvideo_dist.parallel_state import (
    cleanup_dist_env_and_memory,
    get_dp_group,
    get_sp_group,
    get_tp_group,
    get_world_group,
    init_distributed_environment,
    initialize_model_parallel,
)


@dataclass(frozen=True)
class Result:
    """What attention gave, each [1, S, H, D], and times in seconds.

    `out` and `seconds`: in one process, or with the sequence spread over the ranks.
    `out_by_heads` and `seconds_by_heads`: with the heads spread over them (tensor parallel).
    """

    out: Tensor
    seconds: float
    out_by_heads: Tensor | None = None
    seconds_by_heads: float = 0.0
    exchange_fastvideo: float = 0.0
    exchange_gloo: float = 0.0


def run_alone(noisy: Tensor, sigma: float) -> Result:
    """The whole attention in this process, on one thread."""
    torch.set_num_threads(1)
    q, k, v = tokenize(noisy, sigma)
    start = time.perf_counter()
    with _progress(attend_steps(q.shape[1], len(HEADS)), "1 rank") as bar:
        out = attend(q, k, v, bar.update)
    return Result(out, time.perf_counter() - start)


def group_size(world: int) -> int:
    """Ranks of a sequence and of a tensor parallel group: half of them if that goes, else all.

    With half, two groups stand side by side, and each answers half of the queries (data parallel).
    """
    return world // 2 if world > 2 and world % 2 == 0 else world


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
    init_distributed_environment(world, rank, f"file://{folder}/store", rank, "fastvideo")
    size = group_size(world)
    initialize_model_parallel(tensor_model_parallel_size=size, sequence_model_parallel_size=size)
    sets = [list(range(first, first + size)) for first in range(0, world, size)]
    gloo, _ = dist.new_subgroups_by_enumeration(sets, backend="gloo")
    try:
        q, k, v = tokenize(torch.load(f"{folder}/noisy.pt"), sigma)
        replicas = get_dp_group()
        q = q.chunk(replicas.world_size, dim=1)[replicas.rank_in_group]
        out, seconds = _timed(_attend_sequence_parallel, q, k, v)
        by_heads, seconds_by_heads = _timed(_attend_tensor_parallel, q, k, v)
        fast, slow = compare(sequence_model_parallel_shard(k, dim=1)[0], get_sp_group(), gloo)
        if rank == 0:
            result = Result(out, seconds, by_heads, seconds_by_heads, fast, slow)
            torch.save(vars(result), f"{folder}/result.pt")
    finally:
        cleanup_dist_env_and_memory()


def _timed(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, float]:
    """The answers to all queries, those of the other replicas too, and the seconds it took."""
    get_world_group().barrier()
    start = time.perf_counter()
    out = attention(q, k, v)
    seconds = time.perf_counter() - start
    return get_dp_group().all_gather(out, dim=1), seconds


def _attend_sequence_parallel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each rank brings its part of the sequence, and attends with its part of the heads."""
    q, k, v = (to_heads(sequence_model_parallel_shard(x, dim=1)[0]) for x in (q, k, v))
    with _progress(attend_steps(q.shape[1], q.shape[2]), f"sp={get_sp_group().world_size}") as bar:
        out = to_sequence(attend(q, k, v, bar.update))
    return sequence_model_parallel_all_gather(out, dim=1)


def _attend_tensor_parallel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each rank has the whole sequence and its part of the heads from the start."""
    group = get_tp_group()
    q, k, v = (x.chunk(group.world_size, dim=2)[group.rank_in_group] for x in (q, k, v))
    with _progress(attend_steps(q.shape[1], q.shape[2]), f"tp={group.world_size}") as bar:
        out = attend(q, k, v, bar.update)
    return tensor_model_parallel_all_gather(out, dim=2)


def _progress(steps: int, label: str) -> tqdm:
    """A progress bar of rank 0; tqdm reads `disable=None` as "only on a terminal"."""
    hide = dist.is_initialized() and dist.get_rank() != 0
    return tqdm(total=steps, desc=f"{label:6}", unit="chunk", disable=True if hide else None)
