"""Sums that many add to at once, on a real database."""

from __future__ import annotations

import subprocess
import sys

import pytest
from homes import own_home
from hypothesis import given
from hypothesis import strategies as st

from app import meters
from app.db import session

WORD = st.text(st.characters(categories=("L", "N", "P", "S", "Z", "C")), max_size=100)


@pytest.fixture(autouse=True)
def home(tmp_path):
    with own_home(tmp_path) as folder:
        yield folder


def all_of_them() -> list:
    with session() as s:
        return meters.all_meters(s)


def test_sums_go_with_their_transaction():
    for end in ("commit", "rollback", "commit"):
        with session() as s:
            meters.add(s, "stage_seconds", total=1.5, stage="fetch", device="cpu")
            meters.add(s, "stage_seconds", total=0.25, device="cpu", stage="fetch")
            getattr(s, end)()
    assert all_of_them() == [("stage_seconds", {"stage": "fetch", "device": "cpu"}, 4, 3.5)]


def test_what_was_rolled_back_is_not_written_with_the_next():
    with session() as s:
        meters.add(s, "ends", state="failed")
        s.rollback()
        meters.add(s, "ends", state="succeeded")
        s.commit()
    assert all_of_them() == [("ends", {"state": "succeeded"}, 1, 0.0)]


ADDER = """
from app import meters
from app.db import session
for i in range(50):
    with session() as s, s.begin():
        for label in ("ab" if i % 2 else "ba"):
            meters.add(s, "x", count=2, total=0.5, which=label)
"""


def test_four_processes_lose_no_count():
    adders = [subprocess.Popen([sys.executable, "-c", ADDER], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    told = [p.communicate(timeout=60)[1] for p in adders]
    assert [p.returncode for p in adders] == [0] * 4, told
    assert all_of_them() == [("x", {"which": w}, 400, 100.0) for w in "ab"]


@given(st.dictionaries(st.sampled_from(["device", "method", "stage", "type"]), WORD))
def test_labels_are_short_and_harmless_and_come_back(labels):
    text = meters.written(labels)
    assert len(text) <= 255 and text.isascii() and text.isprintable() and '"' not in text
    assert meters.written(meters.read(text)) == text and set(meters.read(text)) == set(labels)


def test_the_rate_is_bytes_by_seconds_of_one_method_on_one_device():
    gpu = "cuda NVIDIA H100 80GB HBM3"
    with session() as s, s.begin():
        meters.add(s, "work", count=100, total=2.0, method="prune+quantize", device="cpu")
        meters.add(s, "work", count=100, total=2.0, method="prune+quantize", device="cpu")
        meters.add(s, "work", count=900, total=1.0, method="prune+quantize", device=gpu)
    with session() as s:
        rates = [meters.rate(s, "prune+quantize", d) for d in ("cpu", gpu, "cuda other")]
    assert rates == [50.0, 900.0, None]


def test_a_recipes_method():
    steps = [{"method": "prune"}, {"method": "quantize"}, {"method": "quantize"}, {"method": "lossless"}]
    assert meters.method({"steps": steps}) == "prune+quantize+lossless"
    assert meters.method({"steps": [{"method": "quantize", "mapping": "gradient", "scale_search": "absmax"}, {"method": "lossless"}]}) == "quantize:gradient+lossless"
