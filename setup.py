"""Builds fastvideo_dist._C against the torch of the environment it will be loaded into, and where
nvcc is also fastvideo_dist._C_cuda, the kernels for GPUs.

What does not change from one build to the next stands in pyproject.toml. Environment variables read
here are listed in docs/environment.md.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.egg_info import egg_info

# torch looks for ninja on the PATH, where it is not if the environment is not activated.
os.environ["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
# A backend of another package that fails to load would end `import torch`, and with it the build.
os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    torch = None

ROOT = Path(__file__).resolve().parent
ROOMS = ("comm", "shm", "nccl", "cuda", "c10d", "ops")
CUDA_ARCHITECTURES = ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
COMMANDS_THAT_NEED_TORCH = {
    "bdist_wheel",
    "build",
    "build_ext",
    "develop",
    "dist_info",
    "editable_wheel",
    "install",
}
BYTES_PER_COMPILER = 2 << 30  # a translation unit with torch's headers peaks near 1.5 GB

TORCH_IS_MISSING = """
fastvideo-dist is compiled against the torch that it will run with, and there is none here
({where}).

In an environment that has torch 2.11 or later:

    pip install "setuptools>=77" wheel packaging ninja
    pip install --no-build-isolation .

or with uv:

    uv pip install "setuptools>=77" wheel packaging ninja
    uv pip install --no-build-isolation .

Without --no-build-isolation the build runs in an environment of its own, which has no torch.
"""


def is_isolated() -> bool:
    """Whether this is the throw-away environment of pip or of uv rather than the user's own."""
    return any(mark in path for mark in ("pip-build-env-", "builds-v0") for path in sys.path)


def require_torch() -> None:
    """Ends the build with instructions where it cannot succeed."""
    if torch is not None:
        return
    where = "this build is isolated" if is_isolated() else f"looked in {sys.prefix}"
    sys.exit(TORCH_IS_MISSING.format(where=where))


def torch_minor() -> str:
    """Such as "2.12"."""
    return ".".join(torch.__version__.split(".")[:2])


def set_max_jobs() -> None:
    """Keeps ninja from starting more compilers than fit into memory; MAX_JOBS overrides."""
    if "MAX_JOBS" in os.environ:
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    jobs = min(len(os.sched_getaffinity(0)), memory // BYTES_PER_COMPILER)
    os.environ["MAX_JOBS"] = str(max(1, jobs))


def find_nvcc() -> tuple[str, str]:
    """nvcc, and nothing; or nothing, and why the kernels cannot be compiled."""
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if nvcc is None:
        return "", f"there is no nvcc {f'in {home}/bin' if home else 'on the PATH'}"
    if torch.version.cuda is None:
        return "", f"torch {torch.__version__} is built without CUDA"
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release (\d+)\.(\d+)", told)
    if version is None:
        return "", f"{nvcc} does not tell its version"
    if version[1] != torch.version.cuda.partition(".")[0]:
        return "", (
            f"{nvcc} is of CUDA {version[1]}.{version[2]}, torch {torch.__version__} of CUDA "
            f"{torch.version.cuda}; the first numbers must be the same"
        )
    return nvcc, ""


def architecture_flags(nvcc: str) -> list[str]:
    """For nvcc, of a list such as "9.0;12.0+PTX"; else of all that it knows of ours, the newest
    also as PTX, which later GPUs compile when they load it."""
    wanted = re.split(r"[ ;,]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip(" ;,"))
    if wanted == [""]:
        told = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
        known = set(told.stdout.split())
        wanted = [one for one in CUDA_ARCHITECTURES if f"sm_{one.replace('.', '')}" in known]
        wanted[-1] += "+PTX"
    flags = []
    for one in wanted:
        found = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", one)
        if found is None:
            sys.exit(f'TORCH_CUDA_ARCH_LIST has "{one}"; allowed are numbers like 9.0 or 12.0+PTX')
        number = found[1] + found[2] + found[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if found[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def compile_kernels(nvcc: str, target: Path, folder: Path) -> None:
    """One call of nvcc, unless `target` is what it would make again. No header of torch is needed,
    and the CUDA runtime is the one that torch loads."""
    room = ROOT / "csrc" / "cuda_kernels"
    warnings = ["-Wall", "-Wextra"]
    command = [nvcc, "-shared", "-std=c++20", "-O3", "-cudart=shared", "-I", str(ROOT / "csrc")]
    if os.environ.get("FASTVIDEO_DIST_WERROR", "0") == "1":
        warnings.append("-Werror")
        command += ["-Werror", "all-warnings"]
    command += ["-Xcompiler", ",".join([*warnings, "-fPIC", "-fvisibility=hidden"])]
    command += ["-isystem", sysconfig.get_path("include"), *architecture_flags(nvcc)]
    if "CXX" in os.environ:
        command += ["-ccbin", os.environ["CXX"]]
    inputs = sorted([*room.iterdir(), *(ROOT / "csrc" / "cuda").glob("*.h")])
    command += [str(path) for path in inputs if path.suffix in {".cu", ".cpp"}]
    state = hashlib.sha256(" ".join(command).encode())
    for path in inputs:
        state.update(path.read_bytes())
    made_of = folder / f"{target.name}.made-of"
    if target.exists() and made_of.exists() and made_of.read_text() == state.hexdigest():
        return
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / target.name
    subprocess.run([*command, "-o", str(draft)], check=True)
    shutil.copy2(draft, target)
    made_of.write_text(state.hexdigest())


def choose_nvcc() -> tuple[str, str]:
    """As find_nvcc(), by FASTVIDEO_DIST_CUDA. Ends the build where that cannot be."""
    wanted = os.environ.get("FASTVIDEO_DIST_CUDA", "auto")
    if wanted not in {"auto", "0", "1"}:
        sys.exit(f'FASTVIDEO_DIST_CUDA is "{wanted}"; allowed are auto, 0 and 1')
    if wanted == "0":
        return "", "FASTVIDEO_DIST_CUDA was 0"
    nvcc, missing = find_nvcc()
    if missing and wanted == "1":
        sys.exit(f"FASTVIDEO_DIST_CUDA is 1, but {missing}")
    if missing:
        print(f"fastvideo_dist is built without its kernels for GPUs: {missing}", flush=True)
    return nvcc, missing


def write_build_info(target: Path, no_kernels: str) -> None:
    """What fastvideo_dist/_compat.py needs to explain an extension that does not load."""
    compiler = os.environ.get("CXX", "c++")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    facts = {
        "TORCH": str(torch.__version__),
        "CUDA": torch.version.cuda,
        "CXX11_ABI": torch.compiled_with_cxx11_abi(),
        "COMPILER": version.stdout.partition("\n")[0] or compiler,
        "PYTHON": platform.python_version(),
        "NO_KERNELS": no_kernels,
    }
    lines = ['"""Written by setup.py: what _C was compiled with."""', ""]
    lines += [f"{name} = {value!r}" for name, value in facts.items()]
    target.write_text("\n".join(lines) + "\n")


def build_folder() -> str:
    """One per version of torch and Python, so that going from one to another stays quick."""
    return f"build/torch-{torch.__version__}-{sysconfig.get_config_var('SOABI')}"


class Build(build):
    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = build_folder()


class EggInfo(egg_info):
    """In the folder of the build: in this one, Python would take it for what is installed."""

    def finalize_options(self) -> None:
        if self.egg_base is None and torch is not None:
            self.egg_base = build_folder()
            Path(self.egg_base).mkdir(parents=True, exist_ok=True)
        super().finalize_options()


class BdistWheel(bdist_wheel):
    """Narrows the wheel's requirement to the minor version of torch that it was compiled against.

    c10d::Backend has no stable binary interface: with any other minor version the extension fails
    to load, or worse.
    """

    def egg2dist(self, egginfo_path: str, distinfo_path: str) -> None:
        super().egg2dist(egginfo_path, distinfo_path)
        metadata = Path(distinfo_path) / "METADATA"
        text, changed = re.subn(
            r"^Requires-Dist: torch\b.*$",
            f"Requires-Dist: torch=={torch_minor()}.*",
            metadata.read_text(),
            flags=re.MULTILINE,
        )
        if changed != 1:
            raise RuntimeError(f"{metadata} names torch {changed} times; it should once")
        metadata.write_text(text)


def extension() -> Any:
    sources = [path for room in ROOMS for path in (ROOT / "csrc" / room).glob("*.cpp")]
    sources += (ROOT / "csrc").glob("*.cpp")  # the bindings
    result = CppExtension(
        "fastvideo_dist._C",
        sorted(str(path.relative_to(ROOT)) for path in sources),
        extra_compile_args=["-std=c++20", "-O3", "-g1", "-fvisibility=hidden", "-Wall", "-Wextra"],
    )
    # CppExtension hands torch's headers over by -I, which would hold them to our warnings.
    result.include_dirs = [str(ROOT / "csrc")]
    for path in [*include_paths(), sysconfig.get_path("include")]:
        result.extra_compile_args += ["-isystem", path]
    if os.environ.get("FASTVIDEO_DIST_WERROR", "0") == "1":
        result.extra_compile_args.append("-Werror")
    return result


def write_units(sources: list[str], folder: Path) -> list[str]:
    """One source for each room that includes those of the room, instead of them: most of the time
    of a compiler goes into torch's headers, which are read once for all of them then.
    """
    units: dict[str, str] = {}
    alone = []
    for source in sources:
        path = Path(source)
        if path.stem.startswith("reduce_"):  # each for a processor of its own
            alone.append(source)
        else:
            units.setdefault(path.parent.name, "")
            units[path.parent.name] += f'#include "{path.relative_to("csrc")}"\n'
    folder.mkdir(parents=True, exist_ok=True)
    for room, text in units.items():
        unit = folder / f"{room}.cpp"
        if not unit.is_file() or unit.read_text() != text:
            unit.write_text(text)
        alone.append(str(unit.relative_to(ROOT)))
    return alone


def commands() -> dict[str, Any]:
    if torch is None:
        return {}

    class BuildExt(BuildExtension):
        def finalize_options(self) -> None:
            # An editable install would compile in a temporary folder, all of it each time.
            if self.build_temp is None:
                self.build_temp = str(ROOT / build_folder() / "objects")
            super().finalize_options()

        def run(self) -> None:
            set_max_jobs()
            nvcc, missing = choose_nvcc()
            if os.environ.get("FASTVIDEO_DIST_UNITS", "1") == "1":
                (module,) = self.extensions
                module.depends = [*map(str, (ROOT / "csrc").rglob("*.*"))]
                module.sources = write_units(module.sources, ROOT / build_folder() / "units")
            super().run()
            package = Path(self.get_ext_fullpath("fastvideo_dist._C")).parent
            kernels = package / f"_C_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
            if nvcc:
                compile_kernels(nvcc, kernels, ROOT / build_folder() / "kernels")
            else:
                kernels.unlink(missing_ok=True)
            write_build_info(package / "_build_info.py", missing)

    return {
        "build": Build,
        "build_ext": BuildExt,
        "bdist_wheel": BdistWheel,
        "egg_info": EggInfo,
    }


if COMMANDS_THAT_NEED_TORCH.intersection(sys.argv):
    require_torch()

setup(ext_modules=[extension()] if torch is not None else [], cmdclass=commands())
