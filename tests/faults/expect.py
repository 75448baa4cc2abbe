"""What a survivor must have raised."""

from __future__ import annotations

import re

from fresh import Outcome

# Promised: 100 ms idle, 1 s oversubscribed. The bound is generous because test machines are not.
BOUND_S = 5.0


def broken(outcome: Outcome, pattern: str, since: float, within: float = BOUND_S) -> float:
    """Asserts a DistBackendError that matches `pattern`, raised within `within` s after `since`.

    The process must then have ended by itself, well. Returns the seconds it took.
    """
    assert outcome.report is not None, outcome
    assert "DistBackendError" in outcome.report.types, outcome
    assert re.search(pattern, outcome.report.text, re.DOTALL), f"wanted {pattern!r} in\n{outcome}"
    assert outcome.exitcode == 0, outcome
    seconds = outcome.report.at - since
    assert seconds < within, f"raised {seconds:.2f} s after the fault\n{outcome}"
    return seconds
