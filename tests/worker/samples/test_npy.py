"""Arrays as numpy writes them are read; everything else is refused before it costs anything."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from app.errors import InputRefused
from worker.samples import npy
from worker.samples.npy import DTYPES, parse_npy, read_npy, read_npz


def written(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    return out.getvalue()


@given(npst.arrays(st.sampled_from([np.dtype(d) for d in DTYPES]), npst.array_shapes(min_dims=0, max_dims=4, max_side=5)), st.booleans())
def test_it_reads_what_numpy_writes(array, fortran):
    array = np.asfortranarray(array) if fortran else array
    got = parse_npy(written(array), "x")
    assert got.dtype == array.dtype and got.shape == array.shape and got.tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(
    "array, reason",
    [
        (np.array([{"a": 1}], dtype=object), "unsafe-pickle"),
        (np.zeros(2, dtype=[("a", "f4"), ("b", [("c", object)])]), "unsafe-pickle"),
        (np.array(["text"]), "invalid-numpy"),
        (np.zeros(3, dtype="c8"), "invalid-numpy"),
        (np.zeros(2, dtype=[("a", "f4")]), "invalid-numpy"),
    ],
)
def test_other_dtypes_are_refused(array, reason):
    assert reason_of(written(array)) == reason


def reason_of(data: bytes) -> str:
    with pytest.raises(InputRefused) as e:
        parse_npy(data, "x")
    return e.value.type


def test_the_other_byte_order_is_read():
    for array in (np.arange(6, dtype=">f4").reshape(2, 3), np.asfortranarray(np.arange(6, dtype=">i8").reshape(2, 3))):
        got = parse_npy(written(array), "x")
        assert got.dtype == array.dtype.newbyteorder("=") and np.array_equal(got, array)


def test_a_bare_pickle_and_a_header_that_is_none_are_refused():
    assert reason_of(pickle.dumps([1] * 20)) == "unsafe-pickle"
    for literal in (b"{{}: 1}", b"{[]: 1}", b"(" * 100, b"-" * 1000 + b"1"):
        assert reason_of(b"\x93NUMPY\x01\x00" + len(literal).to_bytes(2, "little") + literal) == "invalid-numpy"


def header(text: str, data: bytes = b"") -> bytes:
    raw = text.encode()
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + data


@pytest.mark.parametrize(
    "data",
    [
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000000000, 0)}"),
        b"", b"\x93NUMPY", header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627775,)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), header("{'descr': '<f4', 'fortran_order': 0, 'shape': (0,)}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", b"1234567"), header("{'descr': '<f4', 'shape': (0,)}"),
        header("__import__('os').system('x')"), header("(" * 3000), header("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 200 + ")" * 200 + "}"),
        header("{'descr': ['<f4'], 'fortran_order': False, 'shape': (0,)}"), header("{'descr': '<f4', 'fortran_order': False, 'shape': (0,), 'more': 1}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", b"1234"), b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(data):
    with pytest.raises(InputRefused) as e:
        parse_npy(data, "x")
    assert e.value.type == "invalid-numpy"


@given(st.binary(max_size=300))
def test_bytes_that_are_no_array_are_refused(data):
    with pytest.raises(InputRefused):
        parse_npy(b"\x93NUMPY\x01\x00" + data, "x")


def test_arrays_of_a_zip_by_name(tmp_path):
    arrays = {"pixel_values": np.random.default_rng(0).random((3, 2, 2), dtype=np.float32), "deep/name": np.arange(3)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        got = read_npz(tmp_path / "x.npz")
        assert got.keys() == arrays.keys() and all(np.array_equal(got[n], a) for n, a in arrays.items())


def test_a_zip_that_grows_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(60 << 20, dtype="f8"))  # 480 MB out of half a megabyte
    monkeypatch.setattr(npy, "member_chunks", lambda *_: pytest.fail("inflated"))
    with pytest.raises(InputRefused) as e:
        read_npz(tmp_path / "x.npz")
    assert e.value.type == "limit-expand"
    np.savez(tmp_path / "y.npz", a=np.zeros(1000))
    monkeypatch.setattr(npy, "MOST_BYTES", 8000)
    with pytest.raises(InputRefused) as e:
        read_npz(tmp_path / "y.npz")
    assert e.value.type == "limit-expand"


def test_a_member_that_is_no_array_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as z:
        z.writestr("a.pkl", b"x")
    with pytest.raises(InputRefused, match="a.pkl"):
        read_npz(tmp_path / "x.npz")
    np.save(tmp_path / "o.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(InputRefused, match="nothing is unpickled"):
        read_npy(tmp_path / "o.npy")
