from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.kernels.chunks import CorruptPayload, Layout, decode_chunk, encode_chunk

LAYOUTS = [Layout("bytes", 1), *(Layout(kind, w) for kind in ("float", "int") for w in (1, 2, 4, 8)), *(Layout("codes", b) for b in range(1, 9))]
rng = np.random.default_rng(7)


def weights(layout: Layout, count: int, sparsity: float = 0.0) -> np.ndarray:
    """Values such as layers have, as bits: floats around 0.02, small integers, bell-shaped codes."""
    if layout.kind == "float" and layout.width > 1:
        x = rng.normal(0, 0.02, count).astype({2: np.float16, 4: np.float32, 8: np.float64}[layout.width])
        x[rng.random(count) < sparsity] = 0
        return x.view(layout.dtype)
    high = (1 << layout.width) - 1 if layout.kind == "codes" else 255
    x = np.clip(rng.normal(high / 2, high / 8, count), 0, high).astype(layout.dtype)
    x[rng.random(count) < sparsity] = 0
    return x


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_any_bits_survive(layout, data):
    raw = data.draw(st.binary(min_size=layout.dtype.itemsize, max_size=200))
    values = np.frombuffer(raw[: len(raw) // layout.dtype.itemsize * layout.dtype.itemsize], layout.dtype)
    if layout.kind == "codes":
        values = values & np.uint8((1 << layout.width) - 1)
    for entropy in (True, False):
        coded = encode_chunk(values, layout, entropy)
        assert len(coded) <= layout.raw_bytes(len(values)) + 12
        assert np.array_equal(decode_chunk(memoryview(coded), layout, len(values)), values)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.5, 0.9, 0.999, 1.0])
def test_weights_survive(layout, sparsity):
    for count in (1, 7, 5000, 70_001):
        values = weights(layout, count, sparsity)
        assert np.array_equal(decode_chunk(memoryview(encode_chunk(values, layout)), layout, count), values)


def test_every_codec_is_chosen_where_it_wins():
    bf16 = (rng.normal(0, 0.02, 50_000).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    sparse = np.where(bf16 & 0x7FFF < np.median(bf16 & 0x7FFF), 0, bf16).astype(np.uint16)
    noise = rng.integers(0, 1 << 16, 50_000, dtype=np.uint16)
    layout = Layout("float", 2)
    assert [encode_chunk(v, layout)[0] for v in (noise, np.full(9, 5, np.uint16), bf16, sparse)] == [0, 1, 2, 4]
    assert 1.4 < bf16.nbytes / len(encode_chunk(bf16, layout))
    assert 2.6 < bf16.nbytes / len(encode_chunk(sparse, layout))


def test_negative_zeros_and_nan_payloads_in_a_pruned_tensor_survive():
    values = np.zeros(4000, np.uint32)
    values[::9] = np.arange(445, dtype=np.uint32) + 0x7FC00001
    values[1::9], values[2::9] = 0x80000000, 0x00000001
    coded = encode_chunk(values, Layout("float", 4))
    assert coded[0] == 4
    assert np.array_equal(decode_chunk(memoryview(coded), Layout("float", 4), 4000), values)


@pytest.mark.parametrize("layout", [Layout("float", 2), Layout("int", 8), Layout("codes", 3), Layout("bytes", 1)], ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.95])
def test_every_flipped_bit_and_every_cut_is_noticed(layout, sparsity):
    coded = encode_chunk(weights(layout, 600, sparsity), layout)
    for at in range(len(coded)):
        bad = bytearray(coded)
        bad[at] ^= 1 << at % 8
        with pytest.raises(CorruptPayload):
            decode_chunk(memoryview(bad), layout, 600)
        with pytest.raises(CorruptPayload):
            decode_chunk(memoryview(coded)[:at], layout, 600)


def forged(coded: bytes) -> bytes:
    """The chunk with a checksum that holds: what an attacker sends."""
    return coded[:8] + struct.pack("<I", zlib.crc32(coded[12:], zlib.crc32(coded[:8]))) + coded[12:]


@pytest.mark.parametrize("layout", [Layout("float", 2), Layout("float", 4), Layout("int", 4), Layout("codes", 4), Layout("codes", 5)], ids=str)
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=60, deadline=None)
def test_forged_chunks_end_in_the_typed_error_or_in_values_of_the_right_shape(layout, seed):
    r = np.random.default_rng(seed)
    coded = bytearray(encode_chunk(weights(layout, 500, float(r.choice([0, 0.5, 0.9]))), layout))
    for at in r.integers(0, min(len(coded), 64), 3):
        coded[at] = r.integers(0, 256)
    try:
        values = decode_chunk(memoryview(forged(bytes(coded))), layout, 500)
    except CorruptPayload:
        return
    assert values.shape == (500,) and values.dtype == layout.dtype


def test_a_frame_that_declares_more_than_belongs_is_refused_before_it_is_decoded():
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 30))
    body = struct.pack("<BI", 2, len(bomb)) + bomb
    with pytest.raises(CorruptPayload, match="declares"):
        decode_chunk(memoryview(forged(struct.pack("<BBHII", 2, 1, 0, 0, 0) + body)), Layout("bytes", 1), 1000)


def test_codecs_of_codes_are_refused_elsewhere_and_unknown_ones_anywhere():
    with pytest.raises(CorruptPayload, match="none of raw"):
        decode_chunk(memoryview(forged(struct.pack("<BBHII", 7, 0, 0, 0, 0))), Layout("codes", 2), 1)
    with pytest.raises(CorruptPayload, match="no codes"):
        decode_chunk(memoryview(forged(struct.pack("<BBHII", 3, 0, 0, 0, 0))), Layout("float", 2), 1)
