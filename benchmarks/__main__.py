"""Compare backends of torch.distributed: latency of each operation by size, interleaved in one run.

python -m benchmarks --ops all_reduce,barrier --ranks 2,4 --sizes 8,64K,16M
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import describe, load_average
from benchmarks.ops import OPS
from benchmarks.report import header, plot, table
from benchmarks.runner import Plan, Row, measure

SIZES = "8,512,4K,32K,256K,2M,16M"


def parse_size(text: str) -> int:
    """ "64K" -> 65536; the units are 1024-fold."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    unit = units.get(text[-1:].upper(), 1)
    return int(text if unit == 1 else text[:-1]) * unit


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--ops", default=",".join(OPS), help="(%(default)s)")
    parser.add_argument("--ranks", default="2,4", help="world sizes (%(default)s)")
    parser.add_argument("--sizes", default=SIZES, help="bytes, K and M allowed (%(default)s)")
    parser.add_argument(
        "--backends",
        default="fastvideo,gloo,fake",
        help="the first is compared; fake is torch's backend that does nothing (%(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=12, help="turns per backend (%(default)s)")
    parser.add_argument("--batch-ms", type=float, default=30, help="length of a turn (%(default)s)")
    parser.add_argument("--hogs", type=int, default=0, help="foreign busy processes (%(default)s)")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--plot", type=Path, help="draw here, as .svg or .png")
    arguments = parser.parse_args()
    unknown = set(arguments.ops.split(",")) - set(OPS)
    if unknown:
        parser.error(f"unknown operations {sorted(unknown)}; there are {', '.join(OPS)}")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    plan = Plan(
        ops=tuple(arguments.ops.split(",")),
        sizes=tuple(parse_size(size) for size in arguments.sizes.split(",")),
        backends=tuple(arguments.backends.split(",")),
        rounds=arguments.rounds,
        batch_ms=arguments.batch_ms,
        hogs=arguments.hogs,
    )
    rows: list[Row] = []
    machine, memcpy = describe(), 0.0
    for ranks in arguments.ranks.split(","):
        measured, memcpy = measure(plan, int(ranks))
        rows += measured
    machine["load_after"] = load_average()
    report = {
        "command": ["python", "-m", "benchmarks", *sys.argv[1:]],
        "machine": machine,
        "memcpy_gb_per_s": memcpy,
        "hogs": plan.hogs,
        "rows": [asdict(row) for row in rows],
    }
    print(header(report))
    print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.plot:
        plot(report, arguments.plot)


if __name__ == "__main__":
    main()
