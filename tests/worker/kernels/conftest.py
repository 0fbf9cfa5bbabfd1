from __future__ import annotations

import pytest

from worker.kernels import native


@pytest.fixture(params=["compiled", "reference"])
def kernels(request, monkeypatch):
    """Once with the compiled kernels, where they were built, and once with what stands in their place."""
    if request.param == "reference":
        monkeypatch.setattr(native, "available", lambda: False)
    elif not native.available():
        pytest.skip("not built")
