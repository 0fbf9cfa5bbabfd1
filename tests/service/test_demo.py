"""The demo, as a process: what it prints, and that nothing is left of it."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from homes import DEFAULT, new_database

ROOT = Path(__file__).parents[2]
PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def demo(tmp_path):
    """Starts the demo; afterwards no process of it may live (orphans become children of this process) and its temporary folder is empty."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before = set(psutil.Process().children(recursive=True))
    variables = {k: v for k, v in os.environ.items() if not k.startswith("MODELPRESS_")} | {"TMPDIR": str(tmp_path), "COLUMNS": "160"}
    if DEFAULT == "postgresql":
        variables["MODELPRESS_DATABASE_URL"] = new_database(tmp_path)
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job hears no interrupt, and would hand that on
    try:
        process = subprocess.Popen([sys.executable, "-m", "demo"], cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    yield process
    process.kill()
    process.wait()
    left = [p for p in psutil.Process().children(recursive=True) if p not in before and p.status() != psutil.STATUS_ZOMBIE]
    for p in left:
        p.kill()
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
    assert left == [] and list(tmp_path.iterdir()) == []


def test_the_demo_ends_well(demo):
    text, _ = demo.communicate(timeout=280)
    assert demo.returncode == 0, text
    for title, least in (("lossless", 1.0), ("int4, group 128", 0.9), ("50 % pruned", 0.7)):
        (row,) = [line for line in text.splitlines() if title in line and "│" in line]
        cells = [c.strip() for c in row.strip("│").split("│")]
        assert float(cells[3]) > 1 and float(cells[5]) >= least, row
    assert re.search("restored byte for byte", text)


def test_an_interrupted_demo_leaves_nothing(demo, tmp_path):
    for _ in range(600):
        if list(tmp_path.glob("modelpress-demo-*/home/api-key")):
            break
        time.sleep(0.1)
    time.sleep(1)
    demo.send_signal(signal.SIGINT)
    text, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, text
