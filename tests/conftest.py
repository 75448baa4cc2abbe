"""Rules every test lives by: nothing may be left behind, and a failed test ends its ranks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import harness
import leftovers


@pytest.fixture(scope="session", autouse=True)
def ranks_end_with_the_session() -> Iterator[None]:
    yield
    try:
        harness.pool.close()
    finally:
        harness.session.close()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No name of ours may stay in /dev/shm or in the ranks' temporary directory."""
    directory = harness.session.directory
    before = leftovers.files(directory)
    yield
    left = leftovers.files(directory) - before
    assert not left, f"the test left {sorted(left)}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:  # type: ignore[attr-defined]
        harness.pool.discard()
    return report
