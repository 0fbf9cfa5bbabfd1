"""Arrays come back to the bit, in their shapes and orders; what is no array of numbers or text is refused before it costs anything."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from data_jobs import carried_out, there_and_back

from app.errors import InputRefused
from app.formats import sniff
from app.limits import Limits
from app.made import INDEX
from worker.datasets import array_codecs, arrays, sources

_DTYPES = st.sampled_from(["|b1", "|u1", "<i2", ">i4", "<u8", "<f2", ">f4", "<f8", "<c8", ">c16", "<M8[s]", "|S3", "<U2", "|V5"])


@settings(max_examples=150, deadline=None)
@given(dtype=_DTYPES, shape=npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5), data=st.data())
def test_every_codec_gives_the_same_bits(dtype, shape, data):
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    raw = data.draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    rows = np.frombuffer(raw, dtype, count).reshape(shape)
    for codec in ("raw", *array_codecs.candidates(dtype, shape)):
        back = array_codecs.decode(codec, array_codecs.encode(codec, rows, 1), dtype, shape)
        assert back.tobytes() == raw and back.dtype == dtype and back.shape == shape


def _saved(folder, **named):
    folder.mkdir()
    np.savez_compressed(folder / "d.npz", **named)


def test_an_npz_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "CHUNK", 1 << 12)
    r = np.random.default_rng(0)
    nan = np.array([0x7FF8000000000001, 0xFFF0000000000002, 1 << 63], "u8").view("f8")
    record = np.zeros(3, [("a", "<i2"), ("b", "<f4", (2,))])
    given_ = {
        "x": r.integers(0, 9, (300, 4, 5)).astype("u1"), "f": np.asfortranarray(r.normal(size=(70, 40))), "one": np.float32(2), "empty": np.zeros((0, 3)), "nan": nan,
        "text": np.array(["añb", ""]), "when": np.array(["2020-01-01", "NaT"], "M8[D]"), "big": np.arange(9, dtype=">i4"), "record": record, "none": np.zeros((4, 0), "f4"),
    }  # fmt: skip
    _saved(tmp_path / "in", **given_)
    report, stored, back = there_and_back(tmp_path / "in")
    with np.load(back / "d.npz") as got:
        assert list(got) == list(given_)
        for name, array in given_.items():
            array = np.asarray(array)
            assert got[name].tobytes("A") == array.tobytes("A") and got[name].dtype == array.dtype and got[name].shape == array.shape, name
            assert got[name].flags.f_contiguous == array.flags.f_contiguous
    assert [r["name"] for r in report["rows"]] == [f"d.npz/{n}" for n in given_] and all(r["action"] == "encoded" for r in report["rows"])
    assert json.loads((stored / INDEX).read_text())["format"] == "dataset"


def _npy(descr, shape, data=b"", fortran=False, version=b"\x01\x00") -> bytes:
    head = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY" + version + len(head).to_bytes(2, "little") + head + data


@pytest.mark.parametrize(
    "data, reason",
    [
        (_npy("|S0", (10**15,)), "invalid-numpy"), (_npy("<f8", (1 << 47,)), "invalid-numpy"), (_npy("|O", (1,), b"x"), "unsafe-pickle"), (_npy([("a", "|O")], (1,), b"x"), "unsafe-pickle"),
        (_npy("<f8", (2,), b"x" * 15), "invalid-numpy"), (_npy("<f8", (True,), b"x" * 8), "invalid-numpy"), (_npy("<f8", (-1,)), "invalid-numpy"), (_npy("<q9", (1,), b"x" * 9), "invalid-numpy"),
        (_npy("<f8", (1 << 40, 1 << 40)), "invalid-numpy"), (b"\x80\x04K\x01.", "unsafe-pickle"), (b"\x93NUMPY\x01", "invalid-numpy"), (b"\x93NUMPY\x01\x00\x08\x00{[]: 1}\n", "invalid-numpy"), (_npy("<f4", (1 << 47, 0)), "invalid-numpy"), (_npy("|V4294967295", (1,)), "invalid-numpy"), (_npy("<f8", (1,) * 65, b"x" * 8), "invalid-numpy"),
    ],
)  # fmt: skip
def test_bad_arrays_are_refused(data, reason, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.npy").write_bytes(data)
    with pytest.raises(InputRefused) as e:
        carried_out(tmp_path / "in", tmp_path / "out", {"method": "reencode"})
    assert e.value.type == reason


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(Limits, "expanded", lambda self, size: 100 * size)
    monkeypatch.setattr(sources, "member_chunks", lambda *_: pytest.fail("inflated"))
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "b.npz", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a.npy", bytes(1 << 20))
    with pytest.raises(InputRefused) as e:
        carried_out(tmp_path / "in", tmp_path / "out", {"method": "reencode"})
    assert e.value.type == "limit-expand"


def _spoiled(index: dict, field: str, value) -> dict:
    array = index["files"][0]["arrays"][0]
    (index["files"][0] if field in index["files"][0] else array)[field] = value
    return index


@pytest.mark.parametrize(
    "field, value, reason",
    [
        ("shape", [1 << 47, 3], "limit-expand"), ("shape", [9], "invalid-dataset"), ("shape", [21], "invalid-dataset"), ("descr", "'|O'", "unsafe-pickle"), ("descr", "__import__('os')", "invalid-dataset"),
        ("path", "../x.npy", "unsafe-archive"), ("stem", "/etc/passwd", "unsafe-archive"), ("format", "pickle", "invalid-dataset"), ("extra", 1, "invalid-dataset"), ("stem", "data/none", "invalid-dataset"),
        ("grid", {"step": 0.5, "ratio": 1.0}, "invalid-dataset"),
    ],
)  # fmt: skip
def test_a_bad_index_is_refused(field, value, reason, tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.arange(20.0))
    carried_out(tmp_path / "in", tmp_path / "out", {"method": "reencode"})
    index = tmp_path / "out" / "files" / INDEX
    index.write_text(json.dumps(_spoiled(json.loads(index.read_text()), field, value)))
    with pytest.raises(InputRefused) as e:
        carried_out(tmp_path / "out" / "files", tmp_path / "back", {"method": "restore"})
    assert e.value.type == reason


def test_damaged_frames_are_refused_or_other_numbers(tmp_path):
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", a=np.arange(4000.0) ** 0.5, b=np.arange(4000, dtype="i4"), c=np.zeros((50, 9), "u1"))
    carried_out(tmp_path / "in", tmp_path / "out", {"method": "reencode"})
    frames = tmp_path / "out" / "files" / "data" / "a.npz.arrays"
    data = bytearray(frames.read_bytes())
    r = np.random.default_rng(0)
    for i in range(40):
        spoiled = bytearray(data)
        spoiled[r.integers(0, len(data))] ^= 1 << r.integers(0, 8)
        frames.write_bytes(spoiled[: len(data) if i % 3 else r.integers(0, len(data))])
        try:
            carried_out(tmp_path / "out" / "files", tmp_path / f"back{i}", {"method": "restore"})
        except InputRefused as e:
            assert e.type == "invalid-dataset"


def test_what_numpy_writes_is_what_is_written_back(tmp_path):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.asfortranarray(np.arange(12, dtype="<i8").reshape(3, 4)))
    _, _, back = there_and_back(tmp_path / "in")
    assert (back / "a.npy").read_bytes() == (tmp_path / "in" / "a.npy").read_bytes()
    assert io.BytesIO((back / "a.npy").read_bytes()).read(6) == b"\x93NUMPY"


CORPUS = Path(__file__).parents[4] / "shared" / "hostile" / "corpus.tar.xz"


@pytest.mark.skipif(not CORPUS.exists(), reason="the hostile corpus is not beside this clone")
def test_the_corpus_gets_its_verdicts(tmp_path):
    with tarfile.open(CORPUS) as t:
        t.extractall(tmp_path, filter="data", members=[m for m in t.getmembers() if m.name.endswith(("manifest.json", ".npy", ".npz"))])
    folder = next(tmp_path.rglob("manifest.json")).parent
    files = [f for f in json.loads((folder / "manifest.json").read_text())["files"] if f["family"] == "numpy"]
    wrong = []
    for f in files:
        (inp := tmp_path / f["name"] / "in").mkdir(parents=True)
        (inp / f["name"]).write_bytes(data := (folder / f["name"]).read_bytes())
        try:
            sniff(f["name"], data, len(data), kind="dataset")
            carried_out(inp, inp.parent / "out", {"method": "reencode", "level": 1})
            got = ("accepted", "")
        except InputRefused as e:
            got = ("rejected", e.type)
        if got != (f["expected"], f["reason"] or ""):
            wrong.append((f["name"], got))
    assert len(files) > 15 and wrong == []
