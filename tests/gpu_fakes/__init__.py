"""A machine with GPUs, as far as torch and this package can tell: see device.cpp, compute.cpp and
library.cpp.

`built()` compiles both libraries where they are not up to date; `become_gpu_rank()` is for a rank's
process, before its first group.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from fastvideo_dist._compat import extension

KERNELS = b"fastvideo_dist._C_cuda.kernels"  # the name of the capsule

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TABLES = ROOT / "tests/cpp/nccl"
SOURCES = [
    HERE / "library.cpp",
    *(TABLES / f"fake_{name}.cpp" for name in ["cuda", "memory", "nccl", "post", "reduce"]),
    ROOT / "tests/cpp/cuda/fake_kernels.cpp",
]
HEADERS = [
    path
    for folder in [
        "tests/gpu_fakes",
        "tests/cpp/nccl",
        "tests/cpp/cuda",
        "csrc/nccl",
        "csrc/cuda",
    ]
    for path in (ROOT / folder).glob("*.h")
]


@dataclasses.dataclass
class Fakes:
    library: Path  # libnccl and libcudart in one
    device: Path  # what torch is made to believe


def compile_library(
    target: Path, sources: list[Path], options: list[str], libraries: list[str] | None = None
) -> Path:
    inputs = [Path(__file__), *sources, *HEADERS]
    if target.exists() and target.stat().st_mtime > max(p.stat().st_mtime for p in inputs):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_suffix(f".{os.getpid()}")
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O0", "-fPIC", "-shared", "-pthread"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cpp'}", *options]
    subprocess.run(
        [*command, *map(str, sources), "-o", str(draft), "-ldl", *(libraries or [])],
        check=True,
    )
    draft.rename(target)
    return target


def built() -> Fakes:
    # Not in each rank, which only loads what is there: it looks for CUDA's tools, and says so.
    from torch.utils.cpp_extension import include_paths, library_paths  # noqa: PLC0415

    folder = ROOT / f"build/gpu_fakes-{torch.__version__}"
    of_torch = [f"-isystem{path}" for path in [*include_paths(), sysconfig.get_path("include")]]
    of_torch += [f"-L{path}" for path in library_paths()]
    return Fakes(
        library=compile_library(folder / "libfake_gpu.so", SOURCES, ["-Wl,-Bsymbolic"]),
        device=compile_library(
            folder / "libfake_device.so",
            [HERE / "device.cpp", HERE / "compute.cpp"],
            [*of_torch, f"-I{ROOT / 'tests'}"],
            ["-lc10", "-ltorch_cpu"],
        ),
    )


def become_gpu_rank(
    fakes: Fakes, folder: str, check: str = "beside", push: bool | None = None
) -> None:
    """`folder`: empty, the same for all ranks. `push`: None leaves the variable as it is."""
    if push is not None:
        os.environ["FASTVIDEO_DIST_PUSH"] = str(int(push))
    os.environ.update(
        FASTVIDEO_DIST_NCCL_LIBRARY=str(fakes.library),
        FASTVIDEO_DIST_CUDA_LIBRARY=str(fakes.library),
        FASTVIDEO_DIST_NCCL_CHECK=check,
        FAKE_NCCL_FOLDER=folder,
    )
    torch.ops.load_library(str(fakes.device))
    use_kernels(fakes)
    # torch.distributed asks for it to tell which float8 NCCL can reduce.
    torch.cuda.get_device_capability = lambda device=None: (8, 0)  # type: ignore[assignment]


def pretend_cuda() -> None:
    """Has torch's Python side find the fake GPUs, too, where it would ask the driver."""
    torch.cuda.is_available = lambda: True
    torch.cuda.current_device = lambda: 0
    torch.cuda._lazy_init = lambda: None


def use_kernels(fakes: Fakes) -> None:
    """Has the extension use kernels that the host does."""
    library = ctypes.CDLL(str(fakes.library))
    library.fake_kernels.restype = ctypes.c_void_p
    capsule = ctypes.pythonapi.PyCapsule_New
    capsule.restype = ctypes.py_object
    capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    # The capsule keeps the name, the module what it names.
    extension().use_kernels(capsule(library.fake_kernels(), KERNELS, None))


def moved(fakes: Fakes) -> tuple[int, int]:
    """Bytes of device memory read or written so far, and kernels launched, by this process."""
    library = ctypes.CDLL(str(fakes.library))
    library.fake_moved_bytes.restype = ctypes.c_long
    library.fake_launches.restype = ctypes.c_long
    return library.fake_moved_bytes(), library.fake_launches()


def event_queries(fakes: Fakes) -> int:
    """How often this process has asked an event of a fake GPU."""
    queries = ctypes.CDLL(str(fakes.library)).fake_event_queries
    queries.restype = ctypes.c_long
    return int(queries())


def rank_waits(fakes: Fakes) -> int:
    """How often a fake GPU of this process was told to wait for those of the other ranks."""
    waits = ctypes.CDLL(str(fakes.library)).fake_rank_waits
    waits.restype = ctypes.c_long
    return int(waits())


def open_memory(fakes: Fakes) -> int:
    """Allocations of other ranks that this process has open."""
    opened = ctypes.CDLL(str(fakes.library)).fake_open_memory
    opened.restype = ctypes.c_long
    return int(opened())


def refuse_to_open_memory(fakes: Fakes, refuse: bool) -> None:
    """Has this process fail to open memory of others on GPU 0."""
    ctypes.CDLL(str(fakes.library)).fake_refuse_to_open_on(0 if refuse else -1)


def fail_next_launch(fakes: Fakes) -> None:
    ctypes.CDLL(str(fakes.library)).fake_fail_next_launch()


def on_gpu(memory: Tensor, index: int = 0) -> Tensor:
    """A tensor on a fake GPU over the memory of a CPU tensor."""
    return torch.ops.fake_gpu.on_gpu(memory, index)


def synchronize(index: int = 0) -> None:
    """Waits for the current stream of a fake GPU."""
    torch.ops.fake_gpu.synchronize(index)
