"""A service to share, and one to be killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from service.running import QUICK, Service


@pytest.fixture(scope="session")
def service(tmp_path_factory) -> Iterator[Service]:
    """One for all tests that do it no harm, with the settings that users have."""
    running = Service(tmp_path_factory.mktemp("home"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def fragile(tmp_path_factory) -> Iterator[Service]:
    """One to be killed, with short leases."""
    running = Service(tmp_path_factory.mktemp("fragile"), **QUICK)
    yield running
    running.stop()
