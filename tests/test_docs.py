"""What the documents name exists: files, ops, public names, make targets, variables."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

import fastvideo_dist

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for pattern in ["*.md", "docs/**/*.md", "csrc/**/*.md", "tests/*.md", "benchmarks/*.md"]
    for path in ROOT.glob(pattern)
)
FOLDERS = ["benchmarks", "csrc", "demo", "docs", "examples", "fastvideo_dist", "tests", "tools"]
ROOMS = ["comm", "shm", "nccl", "cuda", "cuda_kernels", "c10d", "ops"]
MADE_BY_THE_BUILD = {"fastvideo_dist/_build_info.py", "demo/out"}
VARIABLE = re.compile(r"FASTVIDEO_DIST_[A-Z_]*[A-Z]")

documents = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))


def quoted(path: Path) -> list[str]:
    """What stands in `backticks`, and every word of the fenced blocks."""
    text = path.read_text()
    fence = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
    words = [word for block in fence.findall(text) for word in block.split()]
    return words + re.findall(r"`([^`\n]+)`", fence.sub("", text))


def alternatives(pattern: str) -> list[str]:
    """`a.{h,cpp}` as `a.h` and `a.cpp`."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def exists(relative: str) -> bool:
    return any(ROOT.glob(relative)) or relative in MADE_BY_THE_BUILD


@documents
def test_named_files_exist(path: Path) -> None:
    for word in quoted(path):
        name = re.sub(r"(:\d+)?[:,.;)]*$", "", word)
        if not re.fullmatch(r"[\w.{},*-]+(/[\w.{},*-]+)+/?", name):
            continue
        first = name.split("/")[0]
        for one in alternatives(name.rstrip("/")):
            if first in FOLDERS:
                assert exists(one), f"{path.name} names {one}, which does not exist"
            elif first in ROOMS:
                assert exists(f"csrc/{one}"), f"{path.name} names csrc/{one}, which does not exist"


@documents
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@documents
def test_named_ops_exist(path: Path) -> None:
    schema = "".join(file.read_text() for file in (ROOT / "csrc" / "ops").glob("*.cpp"))
    ops = set(re.findall(r'\bdef\(\s*"(\w+)\(', schema))
    for op in re.findall(r"torch\.ops\.fastvideo_dist\.(\w+)", path.read_text()):
        assert op in ops, f"{path.name} names the op {op}; there are {sorted(ops)}"


@documents
def test_named_attributes_exist(path: Path) -> None:
    for attribute in re.findall(r"(?<![\w.])fastvideo_dist\.([a-z]\w*)", path.read_text(), re.I):
        module = (ROOT / "fastvideo_dist" / f"{attribute}.py").exists() or attribute == "_C"
        known = module or attribute in {*fastvideo_dist.__all__, "__version__", "egg", "pyi"}
        assert known, f"{path.name} names fastvideo_dist.{attribute}, which does not exist"


@documents
def test_named_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for word in quoted(path):
        match = re.match(r"make ([a-z-]+)\b", word)
        assert not match or match[1] in targets, f"{path.name} names `{word}`"


def table(heading: str) -> str:
    text = (ROOT / "docs" / "environment.md").read_text()
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize(
    ("heading", "files"),
    [
        ("At run time", ["csrc/comm/env.h"]),
        ("At run time", ["csrc/comm/env.cpp"]),
        ("When building", ["setup.py"]),
    ],
)
def test_the_variables_are_the_documented_ones(heading: str, files: list[str]) -> None:
    read = {v for file in files for v in VARIABLE.findall((ROOT / file).read_text())}
    assert set(VARIABLE.findall(table(heading))) == read


def test_no_other_file_reads_variables() -> None:
    known = set(VARIABLE.findall((ROOT / "docs" / "environment.md").read_text()))
    for folder in ["csrc", "fastvideo_dist"]:
        for path in (ROOT / folder).rglob("*.[chp]*"):
            if path.suffix in {".cpp", ".h", ".py", ".pyi"}:
                unknown = set(VARIABLE.findall(path.read_text())) - known
                assert not unknown, f"{path.name} names {unknown}, docs/environment.md does not"


def test_documented_defaults_are_the_real_ones() -> None:
    options = (ROOT / "csrc" / "comm" / "options.h").read_text()
    rows = re.findall(
        r"^\| `FASTVIDEO_DIST_\w+` \| `DomainOptions::(\w+)` \| (\d+)", table("At run time"), re.M
    )
    assert rows
    for field, documented in rows:
        value = re.search(rf"\b{field}(?:\{{| = )\s*(\d+)(?: << (\d+))?", options)
        assert value, f"csrc/comm/options.h has no default for {field}"
        assert int(value[1]) << int(value[2] or 0) == int(documented), field
