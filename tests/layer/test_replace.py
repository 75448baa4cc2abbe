"""replace_fastvideo(): imports of FastVideo's layer find this package, in children too."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


@pytest.fixture
def fastvideo(tmp_path: Path) -> Path:
    """A package `fastvideo` whose own layer must never be loaded."""
    files = {
        "fastvideo/__init__.py": "",
        "fastvideo/pipelines.py": (
            "from fastvideo.distributed import get_sp_group, get_world_size\n"
            "from fastvideo.distributed.parallel_state import GroupCoordinator\n"
        ),
        "fastvideo/distributed/__init__.py": "raise SystemExit('the replaced layer was loaded')",
        "fastvideo/distributed/parallel_state.py": "raise SystemExit('the replaced layer')",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def run(path: Path | None, script: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "FASTVIDEO_DIST_REPLACE_FASTVIDEO"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_in_this_process(fastvideo: Path) -> None:
    out = run(
        fastvideo,
        """
        import fastvideo_dist
        fastvideo_dist.replace_fastvideo()
        fastvideo_dist.replace_fastvideo()
        import fastvideo.pipelines, fastvideo.distributed as theirs
        import fastvideo.distributed.parallel_state as state
        import fastvideo.distributed.communication_op, fastvideo.distributed.utils
        import fastvideo.distributed.device_communicators.cuda_communicator as cuda
        from fastvideo_dist import parallel_state
        assert theirs is fastvideo_dist
        assert state is parallel_state is fastvideo.distributed.parallel_state
        assert state.__spec__.name == "fastvideo_dist.parallel_state", state.__spec__
        assert fastvideo.pipelines.get_sp_group is parallel_state.get_sp_group
        state._SP = "assigned"
        assert fastvideo_dist.get_sp_group() == "assigned"
        try:
            import fastvideo.distributed.usp_topology
        except ModuleNotFoundError as error:
            print(error)
        import pickle
        from fastvideo.distributed.utils import StatelessProcessGroup
        assert pickle.loads(pickle.dumps(StatelessProcessGroup)) is StatelessProcessGroup
        """,
    )
    assert "fastvideo.distributed.usp_topology is replaced by fastvideo_dist" in out


def test_without_fastvideo() -> None:
    run(
        None,
        """
        import fastvideo_dist
        fastvideo_dist.replace_fastvideo()
        from fastvideo.distributed import divide, StatelessProcessGroup, GroupCoordinator
        import fastvideo
        assert fastvideo.distributed.utils.divide is divide
        try:
            import fastvideo.models
        except ModuleNotFoundError:
            pass
        else:
            raise SystemExit("fastvideo.models was found")
        """,
    )


def test_too_late(tmp_path: Path) -> None:
    (tmp_path / "fastvideo" / "distributed").mkdir(parents=True)
    out = run(
        tmp_path,
        """
        import fastvideo.distributed, fastvideo_dist
        try:
            fastvideo_dist.replace_fastvideo()
        except RuntimeError as error:
            print(error)
        """,
    )
    assert "too late: fastvideo.distributed" in out


def test_a_child_that_does_not_replace_says_so(tmp_path: Path) -> None:
    """torch tells it by an entry point; if the layer imports torch itself, that is too late."""
    layer = tmp_path / "fastvideo" / "distributed"
    layer.mkdir(parents=True)
    (layer / "__init__.py").write_text("import torch")
    child = "import logging; logging.disable(); import fastvideo.distributed"
    script = f"""
        import subprocess, sys
        import fastvideo_dist
        fastvideo_dist.replace_fastvideo()
        command = [sys.executable, "-W", "ignore", "-c", {child!r}]
        print(subprocess.run(command, capture_output=True, text=True, check=True).stderr)
        """
    out = run(tmp_path, script)
    assert "fastvideo.distributed is not replaced" in out
    assert "too late" in out
    assert "Import torch before" in out


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork", "subprocess"])
def test_in_processes_it_starts(fastvideo: Path, method: str) -> None:
    script = fastvideo / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, subprocess, sys

            CHECK = (
                "import torch, fastvideo.pipelines, fastvideo.distributed, fastvideo_dist;"
                "assert fastvideo.distributed is fastvideo_dist"
            )

            def child():
                exec(CHECK)

            if __name__ == "__main__":
                import fastvideo_dist
                fastvideo_dist.replace_fastvideo()
                if {method!r} == "subprocess":
                    sys.exit(subprocess.run([sys.executable, "-c", CHECK]).returncode)
                process = multiprocessing.get_context({method!r}).Process(target=child)
                process.start()
                process.join()
                sys.exit(process.exitcode)
            """
        )
    )
    run(fastvideo, f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
