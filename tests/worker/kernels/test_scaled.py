from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from worker.kernels import native, scaled
from worker.kernels.chunks import CorruptPayload, Layout, decode_chunk, encode_chunk
from worker.kernels.payload import Payload, chunks, write_payload
from worker.kernels.scaled import Place


def matrix(dtype: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Bits of weights whose rows and columns differ in scale, row by row."""
    r = np.random.default_rng(seed)
    w = (r.standard_normal((rows, columns)) * np.exp(0.7 * r.standard_normal((rows, 1)) + 0.7 * r.standard_normal(columns)) * 0.02).astype(np.float32).reshape(-1)
    if dtype == "float16":
        return w.astype(np.float16).view("<u2")
    return w.view("<u4") if dtype == "float32" else (w.view("<u4") >> 16).astype("<u2")


def layout(values: np.ndarray) -> Layout:
    return Layout("float", values.itemsize)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("phase", [0, 5])
def test_weights_come_back_and_are_smaller_than_without(kernels, dtype, phase):
    values = matrix(dtype, 200, 90)[phase:]
    coded = encode_chunk(values, layout(values), place=Place(90, phase))
    assert coded[0] == 6 and len(coded) < 0.99 * len(encode_chunk(values, layout(values)))
    assert np.array_equal(decode_chunk(memoryview(coded), layout(values), len(values)), values)


@pytest.mark.parametrize("width", [2, 4])
def test_any_bits_come_back(kernels, width):
    """Infinities, NaN payloads, denormals, zeros of both signs among weights; noise; and what is too short."""
    values = matrix("bfloat16" if width == 2 else "float32", 100, 64, 1).copy()
    r = np.random.default_rng(2)
    where = r.integers(0, len(values), 60)
    values[where] = r.integers(0, 1 << 8 * width, 60, dtype=np.uint64).astype(values.dtype)
    values[::500], values[1::500], values[2::500] = 0, 1 << 8 * width - 1, 1
    for v in (values, r.integers(0, 1 << 8 * width, 6000, dtype=np.uint64).astype(values.dtype), values[:50], np.full(5000, values[3])):
        for place in (Place(64, 0), Place(1, 0), Place(len(v) * 3, len(v)), Place(7, 6)):
            coded = encode_chunk(v, layout(v), place=place)
            assert len(coded) <= v.nbytes + 12
            assert np.array_equal(decode_chunk(memoryview(coded), layout(v), len(v)), v)


def test_bytes_below_that_are_alike_take_little(kernels):
    """Weights that were float16 once: the last bits of float32 are zeros."""
    values = matrix("float32", 300, 90) & np.uint32(0xFFFFE000)
    coded = encode_chunk(values, layout(values), place=Place(90, 0))
    assert coded[0] == 6 and len(coded) < 0.6 * values.nbytes
    assert np.array_equal(decode_chunk(memoryview(coded), layout(values), len(values)), values)


@pytest.mark.skipif(not native.available(), reason="not built")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("columns", [9, 16, 301])
def test_compiled_and_reference_write_the_same_bytes(dtype, columns, monkeypatch):
    values = matrix(dtype, 20_000 // columns, columns, columns).copy()
    values[::97] = 0
    place = Place(columns, columns // 2)
    compiled = scaled.encode(values[columns // 2 :], place)
    assert compiled is not None
    monkeypatch.setattr(native, "available", lambda: False)
    assert scaled.encode(values[columns // 2 :], place) == compiled


def test_chunks_of_a_payload_know_their_columns(monkeypatch):
    values = matrix("bfloat16", 1500, 800)
    with ThreadPoolExecutor(2) as pool:
        sizes = []
        for columns in (0, 800, 801):
            out = io.BytesIO()
            write_payload(out, chunks(values, layout(values)), len(values), layout(values), pool, scaled=columns)
            assert np.array_equal(Payload(out.getbuffer()).read(pool), values)
            sizes.append(len(out.getvalue()))
    assert sizes[1] < sizes[2] < sizes[0]


def test_what_a_body_says_is_held_against_what_belongs_there(kernels):
    values = matrix("bfloat16", 80, 64)
    body, escapes = scaled.encode(values, Place(64, 0))

    def told(at: int, *what: int, kind: str = "B") -> bytes:
        changed = bytearray(body)
        struct.pack_into(f"<{len(what)}{kind}", changed, at, *what)
        return bytes(changed)

    n = len(values)
    bad = [told(0, 10), told(0, 8), told(2, 5), told(2, 4), told(3, 1), told(4, n + 1, kind="I"), told(4, 0, kind="I"), told(8, 64, kind="I"), told(12, 0, kind="I"), told(4, 32, kind="I")]
    bad += [body[:size] for size in (0, 15, 16, 40, len(body) // 2, len(body) - 1)] + [body + b"x"]
    for data in bad:
        with pytest.raises(CorruptPayload):
            scaled.decode(memoryview(data), 2, n, escapes)
    for width, count, held in ((4, n, escapes), (2, n - 1, escapes), (2, n, escapes + 1)):
        with pytest.raises(CorruptPayload):
            scaled.decode(memoryview(body), width, count, held)
    large = matrix("bfloat16", 200, 90)
    with pytest.raises(CorruptPayload, match="scaled floats for"):
        decode_chunk(memoryview(encode_chunk(large, Layout("float", 2), place=Place(90, 0))), Layout("int", 2), len(large))


def test_changed_bodies_end_in_an_error_or_in_values(kernels):
    values = matrix("bfloat16", 70, 60)
    values = np.concatenate([values, np.zeros(30, values.dtype)])
    body, escapes = scaled.encode(values, Place(60, 0))
    r = np.random.default_rng(9)
    for _ in range(150):
        changed = bytearray(body)
        for at in r.integers(0, 300 if r.random() < 0.5 else len(body), r.integers(1, 4)):
            changed[at] = r.integers(256)
        try:
            found = scaled.decode(memoryview(bytes(changed)), 2, len(values), escapes)
            assert found.dtype == values.dtype and len(found) == len(values)
        except CorruptPayload:
            pass
