from __future__ import annotations

import numpy as np
import pytest

from worker.kernels import native, turns


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Symbols that are small in some contexts and large in others."""
    r = np.random.default_rng(seed)
    contexts = r.integers(0, 16, n, dtype=np.uint8)
    return np.clip(r.normal(contexts * 0.8, 1.5), 0, 15).astype(np.uint8), contexts


@pytest.mark.parametrize("n", [1, 31, 32, 33, 5000, 70_003])
def test_symbols_come_back_and_take_what_their_entropy_says(kernels, n):
    symbols, contexts = drawn(n)
    counts = turns.counted(symbols, contexts)
    assert counts.sum() == n and counts[contexts[0], symbols[0]] > 0
    frequency = turns.frequencies(counts)
    assert set(frequency.sum(axis=1)) <= {0, turns.SUM} and (frequency[counts > 0] > 0).all()
    data = turns.encode(symbols, contexts, frequency)
    assert abs(len(data) - turns.encoded_bytes(counts)) <= 80
    found, rest = turns.decode(memoryview(data + b"more"), contexts, frequency)
    assert np.array_equal(found, symbols) and bytes(rest) == b"more"


@pytest.mark.skipif(not native.available(), reason="not built")
@pytest.mark.parametrize("case", ["drawn", "one symbol", "one context", "short"])
def test_compiled_and_reference_write_the_same_bytes(case, monkeypatch):
    symbols, contexts = drawn(7 if case == "short" else 20_011, 1)
    if case == "one symbol":
        symbols[:] = 15
    if case == "one context":
        contexts[:] = 0

    def made() -> tuple[bytes, bytes]:
        counts = turns.counted(symbols, contexts)
        return counts.tobytes(), turns.encode(symbols, contexts, turns.frequencies(counts))

    compiled = made()
    monkeypatch.setattr(native, "available", lambda: False)
    assert made() == compiled


def test_a_stream_that_is_none_is_refused(kernels):
    symbols, contexts = drawn(3000)
    contexts[contexts == 3] = 4
    frequency = turns.frequencies(turns.counted(symbols, contexts))
    data = turns.encode(symbols, contexts, frequency)
    for cut in (0, 3, 100, 131, len(data) - 1):
        with pytest.raises(ValueError):
            turns.decode(memoryview(data[:cut]), contexts, frequency)
    strange = contexts.copy()
    strange[7] = 3  # in which nothing occurs
    low = bytearray(data)
    low[4:8] = bytes(4)
    for changed, seen in ((data, strange), (low, contexts), (data[:132] + data[134:] + bytes(2), contexts)):
        with pytest.raises(ValueError):
            turns.decode(memoryview(bytes(changed)), seen, frequency)


@pytest.mark.skipif(not native.available(), reason="not built")
def test_changed_streams_have_the_same_answer_compiled_and_not(monkeypatch):
    symbols, contexts = drawn(600)
    frequency = turns.frequencies(turns.counted(symbols, contexts))
    data, r = turns.encode(symbols, contexts, frequency), np.random.default_rng(5)

    def answer(changed: bytes):
        try:
            found, rest = turns.decode(memoryview(changed), contexts, frequency)
            return found.tobytes(), bytes(rest)
        except ValueError:
            return None

    streams = []
    for _ in range(200):
        changed = bytearray(data)
        for at in r.integers(0, len(data), r.integers(1, 4)):
            changed[at] = r.integers(256)
        streams.append(bytes(changed[: r.integers(1, len(data)) if r.random() < 0.2 else len(data)]))
    compiled = [answer(s) for s in streams]
    monkeypatch.setattr(native, "available", lambda: False)
    assert [answer(s) for s in streams] == compiled
