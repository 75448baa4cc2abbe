"""Time the exchange's kernel on one GPU: against a plain copy, and what FastVideo does instead.

python -m benchmarks.gpu_exchange --ranks 2,4,8

One process plays one of W ranks: what would cross the wire is copied on the device instead. Times
are those of CUDA events, medians of batches that take turns. `moved` are bytes of device memory
read or written, worked out from the shapes; nobody counts them. Without a GPU it ends with code 1.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.machine import describe
from fastvideo_dist import ops
from fastvideo_dist._compat import extension

Step = Callable[[], object]
Copy = Callable[[Sequence[Tensor], Sequence[Tensor]], None]

# q, k, v and a gate of Wan2.1-T2V-14B at 720p: 75 600 tokens, 40 heads of 128.
SEQUENCE, HEADS, HEAD_SIZE, TENSORS = 75600, 40, 128, 4
ROUNDS = 9
CALLS = 10  # of one batch


def transposing(xs: Sequence[Tensor], world: int, wire: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The way of FastVideo: join, transpose, send, join, transpose. [B, S/W, H, D] each."""
    x = torch.cat(list(xs))
    batch, length, heads, size = x.shape
    parts = x.reshape(batch, length, world, heads // world, size)
    came = wire(parts.transpose(0, 2).contiguous())
    joined = torch.cat(list(came))
    return list(joined.transpose(0, 1).contiguous().chunk(len(xs)))


class Ours:
    """One rank's side of all_to_all_4d(xs): `pack`, `wire`, and the way back, `unpack`.

    Rank 0 of `world`; what comes from a peer is what was sent to it.
    """

    def __init__(self, xs: Sequence[Tensor], world: int, copy: Copy):
        self._copy = copy
        batch, length, heads, size = xs[0].shape
        self.ys = [x.new_empty(batch, length * world, heads // world, size) for x in xs]
        heads_of = [x.split(heads // world, dim=2) for x in xs]
        length_of = [y.split(length, dim=1) for y in self.ys]
        packed = [[part.new_empty(part.shape) for part in parts] for parts in heads_of]
        self._parts = [part for parts in heads_of for part in parts]
        self._packed = [
            places[0] if peer == 0 else buffers[peer]
            for places, buffers in zip(length_of, packed, strict=True)
            for peer in range(world)
        ]
        self._wire = [
            (buffers[peer], places[peer])
            for places, buffers in zip(length_of, packed, strict=True)
            for peer in range(1, world)
        ]

    def pack(self) -> None:
        self._copy(self._parts, self._packed)

    def wire(self) -> None:
        for source, target in self._wire:
            target.copy_(source)

    def unpack(self) -> None:
        self._copy(self._packed, self._parts)

    def exchange(self) -> list[Tensor]:
        self.pack()
        self.wire()
        return self.ys


class Push:
    """The same rank where it writes straight into the results of all, which are here, too: its part
    of `results[peer][i]` is what it writes. Without the waits before and after."""

    def __init__(self, xs: Sequence[Tensor], world: int, copy: Copy):
        self._copy = copy
        batch, length, heads, size = xs[0].shape
        self.results = [
            [x.new_empty(batch, length * world, heads // world, size) for x in xs]
            for _ in range(world)
        ]
        self._parts = [part for x in xs for part in x.split(heads // world, dim=2)]
        self._places = [
            self.results[peer][i][:, :length] for i in range(len(xs)) for peer in range(world)
        ]

    def push(self) -> None:
        self._copy(self._parts, self._places)


def microseconds(steps: dict[str, Step]) -> dict[str, float]:
    """On the device; medians of batches in turn."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            step()
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(CALLS):
                step()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) * 1000 / CALLS)
    return {name: sorted(samples)[ROUNDS // 2] for name, samples in times.items()}


def exchange_rows(world: int, sequence: int) -> list[dict[str, object]]:
    shape = (1, sequence // world, HEADS, HEAD_SIZE)
    xs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(TENSORS)]
    size = sum(x.numel() * x.element_size() for x in xs)
    ours = Ours(xs, world, extension().copy_on_gpu)
    wire_target = torch.empty(size // 2, device="cuda", dtype=torch.bfloat16)

    def theirs() -> list[Tensor]:
        return transposing(xs, world, lambda sent: wire_target.view(sent.shape).copy_(sent))

    for mine, other in zip(ours.exchange(), theirs(), strict=True):
        assert torch.equal(mine, other), "the two ways disagree"
    push = Push(xs, world, extension().copy_on_gpu)
    push.push()
    for mine, other in zip(push.results[0], ours.ys, strict=True):
        length = shape[1]
        assert torch.equal(mine[:, :length], other[:, :length]), "the two ways disagree"
    source = torch.randint(0, 255, (size,), device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    steps: dict[str, Step] = {
        "device-to-device copy": lambda: target.copy_(source),
        "pack": ours.pack,
        "unpack": ours.unpack,
        "exchange, the wire a copy": ours.exchange,
        "push, all results on this GPU": push.push,
        "FastVideo's sequence, the wire a copy": theirs,
    }
    remote = (world - 1) / world
    moved = dict.fromkeys(steps, 2.0)
    moved["exchange, the wire a copy"] = 2 + 2 * remote
    moved["FastVideo's sequence, the wire a copy"] = 10
    times = microseconds(steps)
    plain = times["device-to-device copy"]
    return [
        {
            "ranks": world,
            "what": name,
            "bytes": size,
            "moved": moved[name] * size,
            "us": times[name],
            "GB/s": moved[name] * size / times[name] / 1000,
            "of a copy's speed": moved[name] / 2 * plain / times[name],
        }
        for name in steps
    ]


def host_rows() -> list[dict[str, object]]:
    """Microseconds until a call returns, in a group of one rank: what is spent on the host."""
    dist.init_process_group("fastvideo", store=dist.HashStore(), rank=0, world_size=1)
    nccl = dist.new_group(backend="nccl")
    x = torch.ones(1024, device="cuda")
    y = torch.empty_like(x)
    qkv = [torch.ones(1, 64, 8, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    calls: dict[str, Step] = {
        "all_reduce, fastvideo": lambda: dist.all_reduce(x),
        "all_reduce, ProcessGroupNCCL": lambda: dist.all_reduce(x, group=nccl),
        "all_to_all_single, fastvideo": lambda: dist.all_to_all_single(y, x),
        "all_to_all_single, ProcessGroupNCCL": lambda: dist.all_to_all_single(y, x, group=nccl),
        "all_to_all_4d of q, k, v, fastvideo": lambda: ops.all_to_all_4d(qkv),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            call()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(50):
                call()
            times[name].append((time.perf_counter() - begin) / 50 * 1e6)
            torch.cuda.synchronize()
    dist.destroy_process_group()
    return [
        {"ranks": 1, "what": f"host: {name}", "us": sorted(samples)[ROUNDS // 2]}
        for name, samples in times.items()
    ]


def missing() -> str:
    """Why this cannot run here; empty if it can."""
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False: there is no GPU, or this torch has no CUDA"
    try:
        one = torch.ones(1, device="cuda")
        extension().copy_on_gpu([one], [torch.empty_like(one)])
    except NotImplementedError as error:
        return str(error)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", default="2,4,8", help="how many ranks to play, such as 2,4,8")
    parser.add_argument("--sequence", type=int, default=SEQUENCE, help="tokens of all ranks")
    parser.add_argument("--json", help="file to write")
    settings = parser.parse_args()
    if reason := missing():
        print(f"benchmarks.gpu_exchange needs a GPU: {reason}", file=sys.stderr)
        return 1
    rows = []
    for world in [int(number) for number in settings.ranks.split(",")]:
        rows += exchange_rows(world, settings.sequence)
    rows += host_rows()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for row in rows:
        numbers = [f"{key} {row[key]:,.2f}" for key in ("GB/s", "of a copy's speed") if key in row]
        print(
            f"{row['ranks']} ranks  {row['what']:<40} {row['us']:>10.1f} us  {'  '.join(numbers)}"
        )
    if settings.json:
        machine = describe() | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
        Path(settings.json).write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
