"""fastvideo_dist._C_cuda: when it is built, and that what was built can be loaded."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo_dist import _build_info
from fastvideo_dist._compat import extension

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def setup() -> dict[str, Any]:
    """What setup.py defines; `--name` has it do nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["setup.py", "--quiet", "--name"])
        patch.setattr(os, "environ", os.environ.copy())
        return runpy.run_path(str(ROOT / "setup.py"))


def nvcc_that_says(folder: Path, version: str) -> None:
    folder.mkdir(parents=True)
    program = folder / "nvcc"
    program.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}'\n")
    program.chmod(0o755)


def test_what_was_built_is_loaded() -> None:
    built = importlib.util.find_spec("fastvideo_dist._C_cuda") is not None
    assert built == (not _build_info.NO_KERNELS)
    extension()
    assert ("fastvideo_dist._C_cuda" in sys.modules) == built


def test_a_capsule_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="PyCapsule_GetPointer"):
        extension().use_kernels(__import__("datetime").datetime_CAPI)


@pytest.mark.parametrize("wanted", ["auto", "1"])
def test_without_nvcc(
    setup: dict[str, Any],
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("FASTVIDEO_DIST_CUDA", wanted)
    if wanted == "auto":
        assert setup["choose_nvcc"]() == ("", f"there is no nvcc in {tmp_path}/bin")
        said = capsys.readouterr().out
        assert said.count("\n") == 1
        assert f"without its kernels for GPUs: there is no nvcc in {tmp_path}/bin" in said
    else:
        with pytest.raises(SystemExit, match=r"FASTVIDEO_DIST_CUDA is 1, but there is no nvcc"):
            setup["choose_nvcc"]()


def test_an_nvcc_of_another_cuda_is_not_taken(
    setup: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc_that_says(tmp_path / "bin", "11.8")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("FASTVIDEO_DIST_CUDA", "auto")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    nvcc, missing = setup["choose_nvcc"]()
    assert nvcc == ""
    assert "is of CUDA 11.8" in missing
    assert "of CUDA 13.0; the first numbers must be the same" in missing
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in setup["choose_nvcc"]()[1]


def test_it_can_be_declined(setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVIDEO_DIST_CUDA", "0")
    assert setup["choose_nvcc"]() == ("", "FASTVIDEO_DIST_CUDA was 0")
    monkeypatch.setenv("FASTVIDEO_DIST_CUDA", "yes")
    with pytest.raises(SystemExit, match="allowed are auto, 0 and 1"):
        setup["choose_nvcc"]()


def test_a_list_of_architectures(setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a; 12.0+PTX")
    assert setup["architecture_flags"]("nvcc") == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(SystemExit, match='has "Hopper"'):
        setup["architecture_flags"]("nvcc")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
def test_the_kernel_compiles_for_all_architectures(setup: dict[str, Any], tmp_path: Path) -> None:
    """Warnings are errors. 10 s of one core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTVIDEO_DIST_WERROR", "1")
        patch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
        setup["compile_kernels"](shutil.which("nvcc"), tmp_path / "_C_cuda.so", tmp_path / "made")
    cuobjdump = shutil.which("cuobjdump")
    if cuobjdump is None:
        flags = setup["architecture_flags"](shutil.which("nvcc"))
        assert len(flags) >= len(setup["CUDA_ARCHITECTURES"])
        return
    listed = subprocess.run(
        [cuobjdump, "--list-elf", str(tmp_path / "_C_cuda.so")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for one in setup["CUDA_ARCHITECTURES"]:
        assert f"sm_{one.replace('.', '')}" in listed
