"""Servers that the whole test session shares."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported; threads of several processes that share the cores spin while they wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import postgres
import pytest


@pytest.fixture(scope="session", autouse=True)
def shared_servers():
    yield
    if postgres.server.cache_info().currsize:
        postgres.server().remove()


def pytest_make_parametrize_id(val) -> str | None:
    """Bytes are named by their number: some are random, or hold a date, and every process must find the same tests."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None
