from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from worker.kernels.chunks import CorruptPayload, Layout
from worker.kernels.payload import Payload, chunk_log2, chunks, write_payload

BF16 = Layout("float", 2)


def coded(values: np.ndarray, layout: Layout, threads: int = 2, **options) -> bytes:
    out = io.BytesIO()
    with ThreadPoolExecutor(threads) as pool:
        assert write_payload(out, chunks(values, layout), len(values), layout, pool, **options) == len(out.getvalue())
    return out.getvalue()


def bf16(count: int) -> np.ndarray:
    return (np.random.default_rng(1).normal(0, 0.02, count).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.mark.parametrize("layout", [Layout("bytes", 1), BF16, Layout("float", 4), Layout("int", 8), Layout("codes", 3)], ids=str)
@pytest.mark.parametrize("chunked", [0, 1, 2.5])
def test_any_length_survives(layout, chunked):
    count = int(chunked * (1 << chunk_log2(layout)))
    values = np.random.default_rng(2).integers(0, 7, count).astype(layout.dtype)
    with ThreadPoolExecutor(2) as pool:
        payload = Payload(memoryview(coded(values, layout)))
        assert np.array_equal(payload.read(pool), values)
        assert [len(c) for c in payload.chunks(pool)] == [len(c) for c in chunks(values, layout)]


def test_threads_change_no_byte():
    values = bf16(2_000_000)
    assert coded(values, BF16, 1) == coded(values, BF16, 4)


def test_a_chunk_is_decoded_alone():
    values = bf16(1_500_000)
    payload = Payload(memoryview(coded(values, BF16)))
    assert np.array_equal(payload.chunk(2), values[2 << 19 :])


def test_what_is_not_admitted_is_stored_raw():
    zeros = np.zeros(3 << 20, np.uint8)
    assert len(coded(zeros, Layout("bytes", 1))) < 200
    assert len(coded(zeros, Layout("bytes", 1), admit=lambda values, stored: False)) > 3 << 20


def test_a_head_that_does_not_fit_is_refused():
    good = coded(bf16(3000), BF16)
    single = ((0, b"\x09"), (1, b"\x03"), (2, b"\x15"), (2, b"\x08"), (3, b"\x01"), (4, b"\x02"), (16, b"\x00"), (24, b"\xff"))
    for at, field in (*single, (8, struct.pack("<Q", 1 << 62))):
        bad = good[:at] + field + good[at + len(field) :]
        with pytest.raises(CorruptPayload):
            Payload(memoryview(bad))
    for cut in (0, 15, 20, len(good) - 1):
        with pytest.raises(CorruptPayload):
            Payload(memoryview(good)[:cut])
