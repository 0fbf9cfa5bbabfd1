"""Servers that the whole test session shares."""

from __future__ import annotations

import gc
import os
from pathlib import Path

gc.set_threshold(100_000, 20, 50)  # a third of what it takes to find the tests went into looking for garbage
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("authority.pem"))  # no test asks a host of the world, whose 140 authorities took each HTTP client 30 ms to read
os.environ.pop("SSL_CERT_DIR", None)
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported; threads of several processes that share the cores spin while they wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import postgres
import pytest
from dealing import Dealing, turn


def pytest_xdist_make_scheduler(config, log):
    return Dealing(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list) -> None:
    items.sort(key=lambda item: turn(item.nodeid))


def pytest_collection_finish() -> None:
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def shared_servers():
    yield
    if postgres.server.cache_info().currsize:
        postgres.server().remove()


def pytest_make_parametrize_id(val) -> str | None:
    """Bytes are named by their number: some are random, or hold a date, and every process must find the same tests."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None
