"""Servers that the whole test session shares."""

from __future__ import annotations

import postgres
import pytest


@pytest.fixture(scope="session", autouse=True)
def shared_servers():
    yield
    if postgres.server.cache_info().currsize:
        postgres.server().remove()
