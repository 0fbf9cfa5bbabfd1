"""The transform codec: what is coded comes out, on any machine the same, and damaged streams are refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.images.transform import coding
from worker.images.transform.basis import SCALE, dct, forward, image, inverse, klt, moments_of, patches
from worker.images.transform.codec import decode, encode, step_of
from worker.images.transform.coding import MOST, Damaged
from worker.images.transform.model import dumped, loaded
from worker.kernels.integer_tables import SYMBOLS, TOTAL, tables

ROOT = Path(__file__).parents[3]


def pixels(height: int, width: int, channels: int, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    base = 128 + 90 * np.sin((x * 3 + y * 5) / 17)[:, :, None] * [1, 0.5, -0.7][:channels]
    return np.clip(base + np.random.default_rng(seed).normal(0, 5, (height, width, channels)), 0, 255).astype(np.uint8)


@given(rows=st.integers(1, 9), columns=st.integers(1, 20), channels=st.sampled_from((1, 3)), size=st.sampled_from((0, 1, 20, MOST - 1)), seed=st.integers(0, 99))
@settings(max_examples=6, deadline=None)
def test_coefficients_come_out_as_they_went_in(rows, columns, channels, size, seed):
    basis, rng = dct(channels), np.random.default_rng(seed)
    quantized = (rng.laplace(0, 1 + size / 40, (rows, columns, len(basis.matrix)))).astype(np.int64)
    quantized.flat[rng.integers(0, quantized.size, 3)] = [size, -size, 1]
    assert np.array_equal(coding.decode(coding.encode(quantized, basis), basis, rows, columns), quantized)


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 3), (37, 51, 3), (20, 130, 1)])
def test_finer_steps_are_nearer_and_a_learned_transform_is_one_too(shape):
    original = pixels(*shape)
    basis = loaded(dumped(klt(*moments_of(pixels(64, 64, shape[2], 1)))))
    for used in (None, basis):
        far, near = (np.abs(decode(encode(original, step_of(q), used), used).astype(int) - original).mean() for q in (35, 95))
        assert near <= far and near < (1.5 if used is None else 6)
    with pytest.raises(Damaged):
        decode(encode(original, step_of(50), basis))


def test_transforms_are_orthonormal_and_their_inverse_is_exact_in_any_order_of_sums():
    for channels in (1, 3):
        basis = dct(channels)
        m = basis.matrix / SCALE
        assert np.allclose(m @ m.T, np.eye(len(m)), atol=0.01)
        values = patches(pixels(16, 16, channels))
        assert np.abs(inverse(basis, np.rint(forward(basis, values) * 16), 4) - values).max() <= 2
        assert np.array_equal(image(values, 16, 16), pixels(16, 16, channels))
    whole = np.random.default_rng(0).integers(-(1 << 20), 1 << 20, (3, len(basis.matrix)))
    exact = np.floor((whole @ basis.matrix.astype(np.int64)) / (SCALE << 4) + 0.5)
    assert np.array_equal(inverse(basis, whole.astype(np.float64), 4), exact)


def test_tables_are_integers_that_every_machine_has():
    assert (tables().sum(1) == TOTAL).all() and tables().min() >= 1 and tables().shape[1] == SYMBOLS
    assert hashlib.sha256(tables().astype("<i8").tobytes()).hexdigest() == "ca0bc03b4a47afa1d82bdb4417d99a7d1a6377e8c451831e1ce37244028d3f9e"


def test_another_process_with_other_threads_decodes_the_same(tmp_path):
    data = encode(pixels(70, 90, 3), step_of(40))
    (tmp_path / "x.mpt").write_bytes(data)
    code = f"import hashlib; from worker.images.transform.codec import decode; print(hashlib.sha256(decode(open({str(tmp_path / 'x.mpt')!r}, 'rb').read())).hexdigest())"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={"OPENBLAS_NUM_THREADS": "2", "PATH": ""}, check=True)
    assert told.stdout.strip() == hashlib.sha256(decode(data)).hexdigest()


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_damaged_streams_are_refused_or_decode_to_something(data):
    whole = bytearray(encode(pixels(24, 24, 3), step_of(45)))
    cut = data.draw(st.integers(0, len(whole)))
    whole[data.draw(st.integers(12, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        assert decode(bytes(whole[:cut])).dtype == np.uint8
    except Damaged:
        pass


def test_a_damaged_transform_is_refused():
    good = dumped(klt(*moments_of(pixels(64, 64, 3))))
    for bad in (b"", good[:-1], good + b"x", b"MPC1" + good[4:5] + b"\xff\xff" + good[7:], good[:8]):
        with pytest.raises(Damaged):
            loaded(bad)
