"""Who may include and import whom. csrc/README.md says it in words; here it is held.

The tables are the whole rule: what they do not name is forbidden.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "fastvideo_dist"

# Of each room (or file): the own headers it may include, then the foreign ones; by prefix.
STANDARD = r"<[a-z_0-9]+>"  # C++ headers have neither a folder nor an ending
POSIX = r"<(sys|linux)/\w+\.h>|<\w+\.h>"  # with the compiler's own, such as immintrin.h
TENSORS = r"<(ATen|c10)/.*>"
C10D = r"<torch/csrc/distributed/c10d/.*>|<torch/version\.h>"
OPS = r"<torch/library\.h>|<torch/csrc/autograd/.*>"
PYTHON = r"<pybind11/.*>|<torch/csrc/utils/pybind\.h>"
PYTHON_TENSORS = r"<torch/csrc/autograd/python_variable\.h>"
CUDA = r"<cuda_runtime\.h>|<Python\.h>"
THREAD_NAMES = r"<pthread\.h>"
HUGE_PAGES = r"<sys/mman\.h>"
DOORS = ["c10d/backend.h", "c10d/lookup.h", "c10d/tensor_view.h"]  # of c10d, for ops
BINDINGS = ["bind_buffer.h", "bind_communicator.h", "bind_copy.h", "bind_message_queue.h"]
ARROWS = {
    "comm": (["comm/"], [STANDARD, THREAD_NAMES]),
    "shm": (["shm/", "comm/"], [STANDARD, POSIX]),
    "nccl": (["nccl/", "comm/"], [STANDARD, POSIX]),
    "cuda": (["cuda/", "comm/", "nccl/abi.h", "nccl/block_kernels.h"], [STANDARD]),
    "cuda_kernels": (["cuda_kernels/", "cuda/kernel_table.h"], [STANDARD, CUDA]),
    "c10d": (["c10d/", "comm/"], [STANDARD, TENSORS, C10D, THREAD_NAMES]),
    "ops": (["ops/", *DOORS, "cuda/kernels.h", "comm/"], [STANDARD, TENSORS, OPS, HUGE_PAGES]),
    "module.cpp": (
        [*BINDINGS, "interpreter.h", "c10d/", "shm/", "nccl/", "cuda/", "comm/"],
        [STANDARD, POSIX, TENSORS, PYTHON],
    ),
    "bind_buffer.h": (["comm/"], [STANDARD, TENSORS, PYTHON]),
    "bind_buffer.cpp": (
        ["bind_buffer.h", "c10d/tensor_view.h", "comm/"],
        [STANDARD, TENSORS, PYTHON, PYTHON_TENSORS],
    ),
    "bind_copy.h": ([], [PYTHON]),
    "bind_copy.cpp": (
        ["bind_copy.h", "c10d/translate_errors.h", "cuda/kernels.h"],
        [STANDARD, TENSORS, PYTHON],
    ),
    "face.h": (["bind_buffer.h", "c10d/", "comm/"], [STANDARD]),
    "face.cpp": (["face.h", "c10d/device_work.h"], [STANDARD, TENSORS]),
    "bind_communicator.h": (["c10d/backend.h", "c10d/host.h"], [PYTHON]),
    "bind_communicator.cpp": (
        ["bind_buffer.h", "bind_communicator.h", "face.h", "shm/meetings.h", "comm/"],
        [STANDARD, PYTHON],
    ),
    "interpreter.h": (["c10d/host.h"], []),
    "interpreter.cpp": (["interpreter.h"], [PYTHON]),
    "bind_message_queue.h": ([], [PYTHON]),
    "bind_message_queue.cpp": (
        ["bind_message_queue.h", "c10d/translate_errors.h", "interpreter.h", "shm/", "comm/"],
        [STANDARD, TENSORS, PYTHON],
    ),
}

# Of each module: the modules of the project it may import, and packages that need not be there. A
# star: only for type checkers, or lazily, inside a function.
IMPORTS = {
    "_fastvideo_dist_autoload": {"*fastvideo_dist._register", "*fastvideo_dist.replace"},
    "fastvideo_dist": {
        "_fastvideo_dist_autoload",
        "*fastvideo_dist._C",
        "*fastvideo_dist._compat",
        "*fastvideo_dist.communication_op",
        "*fastvideo_dist.nccl",
        "*fastvideo_dist.ops",
        "*fastvideo_dist.parallel_state",
        "*fastvideo_dist.replace",
        "*fastvideo_dist.utils",
    },
    "fastvideo_dist._compat": {
        "*fastvideo_dist._C",
        "*fastvideo_dist._C_cuda",
        "*fastvideo_dist._build_info",
    },
    "fastvideo_dist._register": {
        "fastvideo_dist._compat",
        "fastvideo_dist.ops",
        "*fastvideo_dist._C",
    },
    "fastvideo_dist.serialize": {"fastvideo_dist._compat"},
    "fastvideo_dist._remote_queue": {
        "fastvideo_dist._compat",
        "fastvideo_dist.local",
        "fastvideo_dist.serialize",
    },
    "fastvideo_dist.message_queue": {
        "fastvideo_dist._compat",
        "fastvideo_dist._remote_queue",
        "fastvideo_dist.serialize",
    },
    "fastvideo_dist.ops": {
        "fastvideo_dist.ops.collectives",
        "fastvideo_dist.ops.exchange",
        "fastvideo_dist.ops.splits",
    },
    "fastvideo_dist.ops.collectives": {
        "fastvideo_dist.ops.fakes",
        "fastvideo_dist.ops.groups",
        "fastvideo_dist.ops.splits",
    },
    "fastvideo_dist.ops.exchange": {
        "fastvideo_dist._compat",
        "fastvideo_dist.ops.fakes",
        "fastvideo_dist.ops.groups",
        "fastvideo_dist.ops.splits",
    },
    "fastvideo_dist.ops.fakes": {
        "fastvideo_dist._compat",
        "fastvideo_dist.ops.groups",
        "fastvideo_dist.ops.splits",
    },
    "fastvideo_dist.ops.groups": set(),
    "fastvideo_dist.ops.splits": {"fastvideo_dist.ops.groups"},
    "fastvideo_dist.utils": {"fastvideo_dist.stateless_process_group"},
    "fastvideo_dist.local": set(),
    "fastvideo_dist.rank_layout": set(),
    "fastvideo_dist.graph_capture": set(),
    "fastvideo_dist.process_groups": {"fastvideo_dist._compat", "*fastvideo_dist._C"},
    "fastvideo_dist.stateless_process_group": {"fastvideo_dist.local"},
    "fastvideo_dist.nodes": {"fastvideo_dist.local", "fastvideo_dist.stateless_process_group"},
    "fastvideo_dist.wire": {"fastvideo_dist._compat"},
    "fastvideo_dist.agreement": {"fastvideo_dist.wire"},
    "fastvideo_dist.tensor_dict": {
        "fastvideo_dist.serialize",
        "fastvideo_dist.wire",
    },
    "fastvideo_dist.messages": {
        "fastvideo_dist.agreement",
        "fastvideo_dist.process_groups",
        "fastvideo_dist.tensor_dict",
        "fastvideo_dist.wire",
        "*fastvideo_dist.group_coordinator",
    },
    "fastvideo_dist.broadcasts": {
        "fastvideo_dist._compat",
        "fastvideo_dist.agreement",
        "fastvideo_dist.message_queue",
        "fastvideo_dist.process_groups",
        "fastvideo_dist.tensor_dict",
        "fastvideo_dist.wire",
    },
    "fastvideo_dist.device_communicators": set(),
    "fastvideo_dist.device_communicators.distributed_autograd": set(),
    "fastvideo_dist.device_communicators.base_device_communicator": {
        "fastvideo_dist.agreement",
        "fastvideo_dist.device_communicators.distributed_autograd",
        "fastvideo_dist.messages",
        "fastvideo_dist.ops",
        "fastvideo_dist.process_groups",
    },
    "fastvideo_dist.device_communicators.cpu_communicator": {
        "fastvideo_dist.device_communicators.base_device_communicator"
    },
    "fastvideo_dist.device_communicators.cuda_communicator": {
        "fastvideo_dist.device_communicators.base_device_communicator",
        "fastvideo_dist.device_communicators.pynccl",
    },
    "fastvideo_dist.device_communicators.pynccl": {
        "fastvideo_dist._compat",
        "fastvideo_dist.device_communicators.distributed_autograd",
        "fastvideo_dist.device_communicators.pynccl_wrapper",
        "fastvideo_dist.nccl",
        "fastvideo_dist.process_groups",
        "fastvideo_dist.stateless_process_group",
    },
    "fastvideo_dist.device_communicators.pynccl_wrapper": {
        "fastvideo_dist._compat",
        "fastvideo_dist.nccl",
    },
    "fastvideo_dist.group_coordinator": {
        "fastvideo_dist.broadcasts",
        "fastvideo_dist.device_communicators.base_device_communicator",
        "fastvideo_dist.device_communicators.cpu_communicator",
        "fastvideo_dist.device_communicators.cuda_communicator",
        "fastvideo_dist.graph_capture",
        "fastvideo_dist.local",
        "fastvideo_dist.message_queue",
        "fastvideo_dist.messages",
        "fastvideo_dist.process_groups",
    },
    "fastvideo_dist.parallel_state": {
        "fastvideo_dist.group_coordinator",
        "fastvideo_dist.local",
        "fastvideo_dist.nodes",
        "fastvideo_dist.process_groups",
        "fastvideo_dist.rank_layout",
        "fastvideo_dist.tensor_dict",
    },
    "fastvideo_dist.communication_op": {"fastvideo_dist.parallel_state", "fastvideo_dist.utils"},
    "fastvideo_dist.replace": set(),
    "fastvideo_dist.nccl": {
        "fastvideo_dist.nccl.communicator",
        "fastvideo_dist.nccl.errors",
        "fastvideo_dist.nccl.grouping",
        "fastvideo_dist.nccl.reductions",
        "fastvideo_dist.nccl.types",
        "fastvideo_dist.nccl.unique_id",
    },
    "fastvideo_dist.nccl.communicator": {
        "fastvideo_dist._compat",
        "fastvideo_dist.nccl.checks",
        "fastvideo_dist.nccl.errors",
        "fastvideo_dist.nccl.grouping",
        "fastvideo_dist.nccl.place",
        "fastvideo_dist.nccl.reductions",
        "fastvideo_dist.nccl.types",
        "*numpy",
    },
    "fastvideo_dist.nccl.place": {
        "fastvideo_dist._compat",
        "fastvideo_dist.nccl.buffers",
        "fastvideo_dist.nccl.checks",
        "fastvideo_dist.nccl.errors",
        "fastvideo_dist.nccl.grouping",
        "fastvideo_dist.nccl.unique_id",
    },
    "fastvideo_dist.nccl.checks": {
        "fastvideo_dist._compat",
        "fastvideo_dist.nccl.buffers",
        "fastvideo_dist.nccl.errors",
        "fastvideo_dist.nccl.grouping",
        "fastvideo_dist.nccl.reductions",
        "fastvideo_dist.nccl.types",
        "*fastvideo_dist._C",
    },
    "fastvideo_dist.nccl.reductions": {
        "fastvideo_dist._compat",
        "fastvideo_dist.nccl.buffers",
        "fastvideo_dist.nccl.errors",
        "fastvideo_dist.nccl.types",
        "*fastvideo_dist._C",
    },
    "fastvideo_dist.nccl.buffers": {"fastvideo_dist._compat", "*fastvideo_dist._C"},
    "fastvideo_dist.nccl.grouping": {"fastvideo_dist._compat", "fastvideo_dist.nccl.errors"},
    "fastvideo_dist.nccl.unique_id": {
        "fastvideo_dist._compat",
        "fastvideo_dist.nccl.errors",
        "*numpy",
    },
    "fastvideo_dist.nccl.types": set(),
    "fastvideo_dist.nccl.errors": set(),
}
FOREIGN = sys.stdlib_module_names - {"ctypes", "mmap", "fcntl"} | {"torch"}

MOST_LINES = 400
EXCUSE = "over 400 lines because"


def sources() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in {".cpp", ".h", ".inc", ".cu"})


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s+(<[^>]+>|"[^"]+")', path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", sources(), ids=name)
def test_includes_follow_the_arrows(path: Path) -> None:
    own, foreign = ARROWS[path.relative_to(CSRC).parts[0]]
    for include in includes(path):
        if include.startswith('"'):
            header = include.strip('"')
            assert header.startswith(tuple(own)), f"{name(path)} may not include {include}"
            assert (CSRC / header).is_file(), f"{name(path)}: write {include} from csrc/"
            assert not header.endswith(".cpp"), f"{name(path)} includes a source file: {include}"
        else:
            allowed = any(re.fullmatch(pattern, include) for pattern in foreign)
            assert allowed, f"{name(path)} may not include {include}"


def test_every_room_is_in_the_table() -> None:
    rooms = {path.relative_to(CSRC).parts[0] for path in sources()}
    assert rooms == set(ARROWS)


def test_only_the_contract_reads_the_environment() -> None:
    readers = [name(path) for path in sources() if re.search(r"\bgetenv\b", path.read_text())]
    assert readers == ["csrc/comm/env.cpp"]


def test_only_the_compat_header_asks_for_torchs_version() -> None:
    asking = [name(path) for path in sources() if "TORCH_VERSION_" in path.read_text()]
    assert asking == ["csrc/c10d/torch_compat.h"]


class Imports(ast.NodeVisitor):
    """The modules a file imports, by `import`, `from` and `importlib.import_module("...")`."""

    def __init__(self, tree: ast.Module):
        self.eager: set[str] = set()
        self.lazy: set[str] = set()
        self._later = False
        self.visit(tree)

    def _add(self, module: str) -> None:
        (self.lazy if self._later else self.eager).add(module)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.level == 0, "relative import"
        module = node.module or ""
        # "from package import module" names a module where there is a file or folder of that name.
        for alias in node.names:
            here = PACKAGE / alias.name
            is_module = module == "fastvideo_dist" and (
                here.with_suffix(".py").exists() or here.is_dir()
            )
            self._add(f"{module}.{alias.name}" if is_module else module)

    def visit_Call(self, node: ast.Call) -> None:
        if ast.unparse(node.func).endswith("import_module"):
            for argument in node.args:
                if isinstance(argument, ast.Constant):
                    self._add(argument.value)
        self.generic_visit(node)

    def _visit_later(self, node: ast.AST) -> None:
        before, self._later = self._later, True
        self.generic_visit(node)
        self._later = before

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_later(node)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            self._visit_later(node)
        else:
            self.generic_visit(node)


def modules() -> dict[str, Path]:
    found = {"_fastvideo_dist_autoload": ROOT / "_fastvideo_dist_autoload.py"}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    found.pop("fastvideo_dist._build_info", None)  # generated
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_follow_the_arrows(module: str) -> None:
    found = Imports(ast.parse(modules()[module].read_text()))
    for lazy, imported in [(False, found.eager), (True, found.lazy)]:
        for other in imported:
            top = other.partition(".")[0]
            if top in {"fastvideo_dist", "_fastvideo_dist_autoload"}:
                allowed = IMPORTS[module]
                assert other in allowed or (lazy and f"*{other}" in allowed), (
                    f"{module} may not import {other}{'' if lazy else ' at once'}"
                )
            else:
                optional = lazy and f"*{top}" in IMPORTS[module]
                assert top in FOREIGN or optional, f"{module} may not import {other}"


def code() -> list[Path]:
    folders = ["csrc", "fastvideo_dist", "tests", "demo", "examples", "benchmarks", "tools", ".ci"]
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    files += [path for path in ROOT.iterdir() if path.suffix == ".py" or path.name == "Makefile"]
    text = {".cpp", ".h", ".inc", ".cu", ".py", ".pyi", ".sh", ".txt", ""}
    return sorted(p for p in files if p.suffix in text and "__pycache__" not in p.parts)


def test_no_file_is_long_without_saying_why() -> None:
    for path in code():
        lines = path.read_text().splitlines()
        if len(lines) > MOST_LINES:
            said = any(EXCUSE in line for line in lines[:20])
            assert said, f'{name(path)} has {len(lines)} lines and no line "{EXCUSE} ..."'
