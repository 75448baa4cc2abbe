from __future__ import annotations

import socket

import pytest


@pytest.fixture
def free_port() -> int:
    """Of the loopback; for the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
