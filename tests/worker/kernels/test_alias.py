"""Exponents by their frequencies: every implementation gives the same stream, and takes none that is not one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels import alias, native
from worker.kernels.chunks import CorruptPayload, Layout, decode_chunk, encode_chunk

LEVELS = (None, *(range(native.use(-1) + 1) if native.available() else ()))  # None: numpy


@pytest.fixture(autouse=True)
def best_again():
    yield
    if native.available():
        native.use(len(native.LEVELS))


@pytest.fixture
def on(monkeypatch):
    """Calls something with the kernels of one level, or none."""

    def call(level, f):
        with monkeypatch.context() as m:
            if level is None:
                m.setattr(native, "available", lambda: False)
            else:
                native.use(level)
            return f()

    return call


def exponents(count: int, seed: int, spread: float = 1.0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal(count) * spread
    return (x.astype(np.float32).view(np.uint32) >> 23 & 255).astype(np.uint8)


def counted(plane: np.ndarray) -> np.ndarray:
    return np.bincount(plane, minlength=256)


@pytest.mark.parametrize("count", [63, 64, 65, 4_096, 70_001])
def test_all_give_the_same_stream_and_the_bytes_again(on, count):
    plane = exponents(count, count)
    plane[::97] = 200 + np.arange(len(plane[::97])) % 40  # escapes
    made = {level: on(level, lambda: alias.encode(plane, counted(plane))) for level in LEVELS}
    assert len(set(made.values())) == 1
    data, escapes = made[None]
    for level in LEVELS:
        assert np.array_equal(on(level, lambda: alias.decode(data, count, escapes)), plane)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=16).filter(lambda c: sum(map(bool, c)) > 1))
@settings(max_examples=200, deadline=None)
def test_any_frequencies_have_tables(counts):
    found = alias._normalized(np.array(counts + [0] * (16 - len(counts))))
    assert found.sum() == 4096 and found.max() < 4096 and ((found > 0) == (np.array(counts + [0] * (16 - len(counts))) > 0)).all()
    slots = alias.Tables.of(found).slots[:4096]
    assert np.array_equal(np.sort(slots), np.arange(4096))


def test_it_costs_the_entropy():
    plane = exponents(1 << 19, 3)
    share = counted(plane)[counted(plane) > 0] / len(plane)
    data, escapes = alias.encode(plane, counted(plane))
    assert len(data) < 1.002 * -(share * np.log2(share)).sum() * len(plane) / 8 + 308


def test_what_it_is_for():
    assert alias.suits(counted(exponents(1 << 16, 0)))
    assert not alias.suits(counted(exponents((1 << 16) - 1, 0)))  # too few
    assert not alias.suits(counted(np.full(1 << 16, 7, np.uint8)))
    assert not alias.suits(counted(np.arange(1 << 16).astype(np.uint8)))  # no fifteen are common


@given(at=st.integers(0, 3000), byte=st.integers(1, 255), cut=st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_refused(at, byte, cut):
    """Or decodes to bytes, the same ones by every implementation: the chunk's checksum is there for what does not show."""
    plane = exponents(5000, 1)
    data, escapes = alias.encode(plane, counted(plane))
    changed = bytearray(data)
    at %= len(data)
    changed[at] ^= byte
    found = set()
    for level in LEVELS:
        try:
            with pytest.MonkeyPatch.context() as m:
                if level is None:
                    m.setattr(native, "available", lambda: False)
                else:
                    native.use(level)
                found.add(alias.decode(bytes(changed[:at] if cut else changed), 5000, escapes).tobytes())
        except ValueError:
            found.add(None)
    assert len(found) == 1


@pytest.mark.parametrize("width", [2, 4])
def test_a_chunk_has_it_where_exponents_are_common(on, width):
    values = np.random.default_rng(0).standard_normal(70_000).astype(np.float32).view(np.uint32)
    values = values if width == 4 else (values >> 16).astype(np.uint16)
    layout = Layout("float", width)
    made = {on(level, lambda: encode_chunk(values, layout)) for level in LEVELS}
    assert len(made) == 1
    data = made.pop()
    assert data[12] == 6
    for level in LEVELS:
        assert np.array_equal(on(level, lambda: decode_chunk(memoryview(data), layout, len(values))), values)
    with pytest.raises(CorruptPayload, match="words|states"):
        decode_chunk(memoryview(data), layout, len(values) - 64)
