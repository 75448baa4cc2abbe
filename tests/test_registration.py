"""`init_process_group("fastvideo")` without an import, and what may go wrong on the way.

Each test runs in a process of its own: registration happens once, while torch is imported.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest
import torch

import fastvideo_dist

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
eager_only = pytest.mark.skipif(TORCH >= (2, 14), reason="torch registers it when first asked for")

INIT = """
import torch.distributed as dist
dist.init_process_group("fastvideo", store=dist.HashStore(), rank=0, world_size=1)
x = torch.ones(3)
dist.all_reduce(x)
assert x.tolist() == [1, 1, 1]
dist.destroy_process_group()
"""
IMPORTED = 'assert {"fastvideo_dist", "fastvideo_dist._C"}.isdisjoint(sys.modules)\n'


def run(
    folder: Path, code: str, *, path: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """`code` after `import sys, torch`; in `folder`, away from the sources; `path` comes first."""
    environment = {k: v for k, v in os.environ.items() if k != "TORCH_DEVICE_BACKEND_AUTOLOAD"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", f"import sys, torch\n{code}"],
        cwd=folder,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout


def copy_of_the_package(folder: Path) -> Path:
    """To break; returns the package's own folder."""
    source = Path(fastvideo_dist.__file__).parent
    shutil.copy(source.parent / "_fastvideo_dist_autoload.py", folder)
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(source, folder / "fastvideo_dist", ignore=ignored))


def test_no_import_is_needed(tmp_path: Path) -> None:
    succeed(run(tmp_path, IMPORTED + INIT))


def test_the_import_registers_too(tmp_path: Path) -> None:
    code = "import fastvideo_dist\nassert 'fastvideo_dist._C' not in sys.modules\n"
    succeed(run(tmp_path, code + INIT, TORCH_DEVICE_BACKEND_AUTOLOAD="0"))


@eager_only
def test_without_autoload_the_import_is_needed(tmp_path: Path) -> None:
    result = run(tmp_path, INIT, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert result.returncode != 0
    assert "fastvideo" in result.stderr


def test_the_package_may_be_imported_before_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", f"import fastvideo_dist\nimport torch\n{INIT}"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=100)


def test_registering_twice_is_harmless(tmp_path: Path) -> None:
    code = """
import torch.distributed as dist
import fastvideo_dist
first = dist.Backend._plugins["FASTVIDEO"]
fastvideo_dist.register()
fastvideo_dist.register()
assert dist.Backend._plugins["FASTVIDEO"] is first
assert dist.Backend.backend_list.count("fastvideo") == 1
assert dist.Backend.default_device_backend_map["cpu"] == "gloo"
"""
    succeed(run(tmp_path, code + INIT))


@pytest.mark.parametrize("backend", ["cpu:fastvideo", "cpu:fastvideo,cuda:fastvideo", "FASTVIDEO"])
def test_other_spellings(tmp_path: Path, backend: str) -> None:
    succeed(run(tmp_path, INIT.replace('"fastvideo"', f'"{backend}"')))


def test_autoload_costs_less_than_a_millisecond(tmp_path: Path) -> None:
    """The best of some processes, since others may hold the processor; and no extension loaded."""
    code = """
import time
from importlib.metadata import entry_points
(ours,) = [e for e in entry_points(group="torch.backends") if e.name == "fastvideo_dist"]
begin = time.perf_counter()
ours.load()()
print(time.perf_counter() - begin)
"""
    seconds = []
    for _ in range(5):
        out = run(tmp_path, code + IMPORTED, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
        seconds.append(float(succeed(out)))
        if seconds[-1] < 1e-3:
            return
    pytest.fail(f"autoload takes {min(seconds) * 1e3:.2f} ms")


def test_a_broken_extension_does_not_break_torch(tmp_path: Path) -> None:
    package = copy_of_the_package(tmp_path)
    for extension in package.glob("_C*.so"):
        extension.write_bytes(b"not a library")
    succeed(run(tmp_path, IMPORTED, path=tmp_path))
    result = run(tmp_path, INIT, path=tmp_path)
    assert "ImportError" in result.stderr
    assert torch.__version__ in result.stderr
    assert "pip install --no-build-isolation" in result.stderr


def test_a_broken_package_does_not_break_torch(tmp_path: Path) -> None:
    (copy_of_the_package(tmp_path) / "__init__.py").write_text("raise RuntimeError('broken')")
    succeed(run(tmp_path, "", path=tmp_path))


def test_a_failing_registration_does_not_break_torch(tmp_path: Path) -> None:
    copy_of_the_package(tmp_path)
    module = tmp_path / "_fastvideo_dist_autoload.py"
    broken = module.read_text().replace("    register()\n", "    raise RuntimeError('broken')\n")
    module.write_text(broken)
    succeed(run(tmp_path, "", path=tmp_path))


def test_another_minor_version_of_torch_is_explained(tmp_path: Path) -> None:
    info = copy_of_the_package(tmp_path) / "_build_info.py"
    info.write_text(info.read_text().replace(f"'{torch.__version__}'", "'2.3.4'"))
    result = run(tmp_path, INIT, path=tmp_path)
    assert "compiled for torch 2.3.4" in result.stderr
    assert f"running is torch {torch.__version__}" in result.stderr
    assert "pip install --no-build-isolation" in result.stderr


def test_an_uncompiled_checkout_is_explained(tmp_path: Path) -> None:
    # Not by deleting the file: an editable install would find it where the sources are.
    missing = "raise ModuleNotFoundError('fastvideo_dist._build_info')"
    (copy_of_the_package(tmp_path) / "_build_info.py").write_text(missing)
    result = run(tmp_path, INIT, path=tmp_path)
    assert "was not compiled" in result.stderr
    assert "pip install --no-build-isolation" in result.stderr


def test_options_of_another_backend_are_refused(tmp_path: Path) -> None:
    wrong = INIT.replace("world_size=1", "world_size=1, pg_options=object()")
    result = run(tmp_path, wrong)
    assert "TypeError: pg_options is a builtins.object" in result.stderr


def test_options_are_copied_and_may_carry_the_timeout(tmp_path: Path) -> None:
    code = """
from datetime import timedelta
import torch.distributed as dist
import fastvideo_dist
options = fastvideo_dist.Options(timeout=timedelta(seconds=7))
store = dist.HashStore()
dist.init_process_group("fastvideo", store=store, rank=0, world_size=1, pg_options=options)
backend = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
assert backend.options is not options
assert backend.options._timeout == timedelta(seconds=7)
assert not options.global_ranks_in_group
group = dist.new_group([0], timeout=timedelta(seconds=9))
assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=9)
try:
    dist.new_group([0], timeout=timedelta(seconds=9), pg_options=options)
except ValueError as error:
    assert "0:00:07" in str(error) and "0:00:09" in str(error), error
else:
    raise AssertionError("two timeouts were accepted")
dist.destroy_process_group()
"""
    succeed(run(tmp_path, code))


def test_the_entry_points_and_the_pin_are_in_the_metadata() -> None:
    found = entry_points(group="torch.distributed.backends", name="fastvideo")
    assert [entry.value for entry in found] == ["_fastvideo_dist_autoload:register"]
    pins = [r for r in requires("fastvideo-dist") or [] if r.startswith("torch")]
    assert pins == [f"torch=={TORCH[0]}.{TORCH[1]}.*"]
