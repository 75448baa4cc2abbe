"""setup.py without torch: a source archive is made, a build ends with instructions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources, beside a module that stands for the absence of torch."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ["setup.py", "pyproject.toml", "MANIFEST.in", "_fastvideo_dist_autoload.py"]:
        shutil.copy(ROOT / name, folder)
    for name in ["csrc", "fastvideo_dist"]:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "README.md").write_text("")
    (folder / "LICENSE").write_text("")
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "torch.py").write_text("raise ModuleNotFoundError('torch', name='torch')")
    return folder


def setup(checkout: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", *command],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout.parent / "missing")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_source_archive_needs_no_torch(checkout: Path) -> None:
    result = setup(checkout, "sdist")
    assert result.returncode == 0, result.stderr
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
        (info,) = [m for m in tar.getmembers() if m.name.count("/") == 1 and "PKG-INFO" in m.name]
        metadata = tar.extractfile(info)
        assert metadata is not None
        assert "Requires-Dist: torch>=2.11\n" in metadata.read().decode()
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
    assert sources <= names
    assert {"fastvideo_dist/py.typed", "fastvideo_dist/_C.pyi"} <= names
    built = [name for name in names if name.endswith((".so", "_build_info.py"))]
    assert not built


@pytest.mark.parametrize("command", ["bdist_wheel", "build_ext", "dist_info"])
def test_a_build_without_torch_says_what_to_do(checkout: Path, command: str) -> None:
    result = setup(checkout, command)
    assert result.returncode != 0
    assert "pip install --no-build-isolation ." in result.stderr
