"""What the tests of the layer have in common: a job with its groups, and its end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fastvideo_dist import parallel_state as ps


@contextlib.contextmanager
def job(rank: int, world_size: int, tp: int = 1, sp: int | None = None) -> Iterator[None]:
    """All groups, on the default group that the harness has made; SP over all ranks."""
    ps.init_distributed_environment(world_size, rank)
    ps.initialize_model_parallel(tp, world_size if sp is None else sp)
    yield
    # Not in a `finally`: the error says more than what follows it.
    ps.cleanup_dist_env_and_memory()


_Kinds = type[BaseException] | tuple[type[BaseException], ...]


def fails(kind: _Kinds, *words: str) -> _Fails:
    """As pytest.raises, for use in a rank: the message must hold all the words."""
    return _Fails(kind, words)


class _Fails:
    def __init__(self, kind: _Kinds, words: tuple[str, ...]) -> None:
        self._kind = kind
        self._words = words

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _trace: object) -> bool:
        assert error is not None, f"{self._kind} was not raised"
        if not isinstance(error, self._kind):
            return False
        for word in self._words:
            assert word in str(error), f"{word!r} is not in {error}"
        return True
