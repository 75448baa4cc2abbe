"""Tables and plots from measured rows, fresh or out of a JSON file.

python -m benchmarks.report benchmarks/results/NAME.json [--plot OUT.svg] [--markdown]
"""

import argparse
import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Report = dict[str, Any]  # {"command", "machine", "memcpy_gb_per_s", "rows": [Row as dict]}
Found = dict[str, dict[str, Any]]  # backend -> Row
COLORS = {
    "fastvideo": "#1b6ca8",
    "gloo": "#c8553d",
    "fake": "#999999",
    "fastvideo+permutes": "#7fb3d8",
    "gloo+permutes": "#e8a798",
}


def table(report: Report, markdown: bool = False) -> str:
    """A line per operation, ranks and size; operations with other backends get another table."""
    blocks: dict[tuple[str, ...], list[Found]] = {}
    for found in grouped(report).values():
        blocks.setdefault(tuple(found), []).append(found)
    form = _markdown if markdown else _plain
    return "\n\n".join(form(_lines(names, rows)) for names, rows in blocks.items())


def _lines(names: tuple[str, ...], rows: list[Found]) -> list[list[str]]:
    """Medians and p99 in microseconds, then how many times longer the others take than the first.

    Of the backend that does nothing the inverse is shown: how many times longer the first takes.
    """
    first, others = names[0], names[1:]
    lines = [["operation", "ranks", "bytes"]]
    for name in names:
        lines[0] += [f"{name} us", "p99"]
    lines[0] += [f"{first} / fake" if n == "fake" else f"{n} / {first}" for n in others]
    for found in rows:
        row = found[first]
        line = [row["op"], str(row["ranks"]), human(row["bytes"])]
        for name in names:
            line += [number(found[name]["median_us"]), number(found[name]["p99_us"])]
        for name in others:
            over, under = (first, name) if name == "fake" else (name, first)
            line.append(f"{found[over]['median_us'] / found[under]['median_us']:.1f}")
        lines.append(line)
    return lines


def grouped(report: Report) -> dict[tuple[str, int, int], Found]:
    """(op, ranks, bytes) -> the rows of that line."""
    result: dict[tuple[str, int, int], Found] = {}
    for row in report["rows"]:
        result.setdefault((row["op"], row["ranks"], row["bytes"]), {})[row["backend"]] = row
    return result


def header(report: Report) -> str:
    """The machine in two lines."""
    machine = report["machine"]
    return (
        f"# {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, "
        f"torch {machine['torch']}, commit {machine['commit']}\n"
        f"# memcpy {report['memcpy_gb_per_s']:.1f} GB/s; median and p99 of the slowest rank; "
        f"{report['hogs']} foreign busy processes, "
        f"load {machine['load_before']} before and {machine['load_after']} after"
    )


def plot(report: Report, path: Path) -> None:
    """Median latency over size, log-log: a panel per operation, a line per backend and ranks."""
    rows = [row for row in report["rows"] if row["bytes"]]
    ops = list(dict.fromkeys(row["op"] for row in rows))
    columns = min(3, len(ops))
    lines = -(-len(ops) // columns)
    figure = Figure(figsize=(4 * columns, 3 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    labels: dict[str, Line2D] = {}
    for panel, op in zip_longest(panels, ops):
        if op is None:
            panel.axis("off")
            continue
        labels |= _draw(panel, [row for row in rows if row["op"] == op])
        panel.set_title(op, fontsize=10)
    for panel in panels[::columns]:
        panel.set_ylabel("microseconds, median", fontsize=8)
    figure.legend(labels.values(), labels, loc="outside lower center", ncols=4, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw(panel: Axes, rows: list[dict[str, Any]]) -> dict[str, Line2D]:
    """One operation's lines; returns them by their label."""
    drawn = {}
    worlds = sorted({row["ranks"] for row in rows})
    for name in dict.fromkeys(row["backend"] for row in rows):
        for style, world in zip(("-", "--", ":", "-."), worlds, strict=False):
            chosen = [row for row in rows if (row["backend"], row["ranks"]) == (name, world)]
            (drawn[f"{name}, {world} ranks"],) = panel.loglog(
                [row["bytes"] for row in chosen],
                [row["median_us"] for row in chosen],
                style,
                color=COLORS.get(name),
                marker="o",
                markersize=3,
            )
    ticks = sorted({row["bytes"] for row in rows if row["ranks"] == worlds[0]})
    panel.set_xticks(ticks, [human(size) for size in ticks])
    panel.minorticks_off()
    panel.tick_params(labelsize=8)
    panel.grid(True, alpha=0.3)
    return drawn


def human(size: int) -> str:
    """65536 -> "64K"; what is no round number of KiB is rounded to one."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if size >= unit:
            return f"{size / unit:.3g}{name}"
    return str(size)


def number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _plain(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(lines[0]) - 1)
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], rule, *lines[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    report = json.loads(arguments.json.read_text())
    print(header(report))
    print(table(report, arguments.markdown))
    if arguments.plot:
        plot(report, arguments.plot)


if __name__ == "__main__":
    main()
