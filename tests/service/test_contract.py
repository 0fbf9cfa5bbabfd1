"""The contract, run from outside on every safetensors model at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared"
MODELS = sorted((SHARED / "data").rglob("*.safetensors"))


@pytest.mark.skipif(not MODELS, reason="the contract and its models are not beside this clone")
@pytest.mark.parametrize("models", [pytest.param(MODELS[:1], id="one"), pytest.param(MODELS, id="all", marks=pytest.mark.slow)])
def test_the_contract_holds(models):
    command = [sys.executable, str(SHARED / "contract" / "check.py"), *map(str, models)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0 and "contract: all hold" in done.stdout, done.stdout + done.stderr
