"""Formats are told by content, and the name must agree with it."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import subprocess
import sys
import tarfile
import zipfile

import pytest

from app.errors import InputRefused
from app.formats import FORMATS, HEAD_BYTES, catalogue, header_bytes_needed, sniff
from app.limits import Limits
from app.safetensors_header import PACKED


def safetensors(metadata: dict | None = None) -> bytes:
    entry = {"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
    text = json.dumps(({"__metadata__": metadata} if metadata else {}) | entry).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4)


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name in names:
            z.writestr(name, b"x")
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        t.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return out.getvalue()


TORCH = zipped("archive/data.pkl", "archive/version")
PROGRAM = zipped("net/data/weights/weight_0", "net/models/model.json")


def told(name: str, data: bytes) -> str:
    """As the API asks: eight bytes, then as many as are needed."""
    try:
        return sniff(name, data[: header_bytes_needed(data[:8])], len(data))
    except InputRefused as e:
        return e.type


@pytest.mark.parametrize(
    ("name", "data", "format"),
    [
        ("m.safetensors", safetensors(), "safetensors"), ("m", safetensors(), "safetensors"), ("M.SAFETENSORS", safetensors(), "safetensors"),
        ("m.packed.safetensors", safetensors({"format": PACKED}), "packed"), ("m.pt", TORCH, "torch"), ("m.pt2", PROGRAM, "pt2"), ("M.PT2", PROGRAM, "pt2"), ("pytorch_model.bin", TORCH, "torch"),
        ("m", TORCH, "torch"),
        ("m.zip", TORCH, "torch"), ("m.zip", zipped("config.json"), "zip"), ("m", zipped("config.json"), "zip"), ("m.tar", tarred(), "tar"),
        ("m.tar.gz", gzip.compress(tarred()), "tar"), ("m.tgz", gzip.compress(tarred()), "tar"), ("old.pth", pickle.dumps(1, 2), "torch"),
        ("config.json", b"{}", "file"), ("LICENSE", b"MIT", "file"), ("tokenizer.model", b"\x0a\x0e", "file"), ("empty.txt", b"", "file"),
        ("gitattributes", b"", "file"),
    ],
)  # fmt: skip
def test_what_is_read(name, data, format):
    assert told(name, data) == format


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("m.safetensors", zipped("a"), "invalid-safetensors"), ("m.safetensors", b"", "invalid-safetensors"),
        ("m.safetensors", safetensors()[:-1], "invalid-safetensors"),
        ("m.pt", safetensors(), "kind-mismatch"), ("m.pt", b"", "invalid-torch"), ("m.pt", gzip.compress(TORCH), "invalid-torch"),
        ("m.pt", b"hello", "invalid-torch"),
        ("m.zip", tarred(), "kind-mismatch"), ("m.tar", zipped("a"), "kind-mismatch"), ("m.zip", b"", "invalid-archive"),
        ("m.pt2", b"", "invalid-pt2"), ("m.pt2", b"\x80\x02.", "invalid-pt2"), ("m.pt2", TORCH, "kind-mismatch"), ("m.pt2", safetensors(), "kind-mismatch"),
        ("m.pt", PROGRAM, "kind-mismatch"), ("m", PROGRAM, "kind-mismatch"), ("m.zip", PROGRAM, "kind-mismatch"),
        ("m.onnx", safetensors(), "unsupported-format"),
        ("m.npz", zipped("a.npy"), "unsupported-format"), ("m.gguf", b"GGUF", "unsupported-format"), ("m", b"GGUF" + bytes(99), "unsupported-format"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "unsupported-format"), ("a", b"\x7fELF", "unsupported-format"), ("a.exe", b"", "unsupported-format"),
        ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "lfs-pointer"),
        ("m.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "lfs-pointer"),
    ],
)  # fmt: skip
def test_what_is_refused(name, data, reason):
    assert told(name, data) == reason


def test_an_answer_names_what_is_read_and_escapes_the_name():
    with pytest.raises(InputRefused, match="safetensors, PyTorch") as e:
        sniff("a\x1b[31m\u202e.onnx", b"", 0)
    assert "\x1b" not in e.value.detail and "\u202e" not in e.value.detail


def test_never_more_than_a_header_is_asked_for():
    assert header_bytes_needed(b"") == header_bytes_needed(b"PK\x03\x04abcd") == header_bytes_needed(b"\xff" * 8) == 512
    assert header_bytes_needed(Limits().safetensors_header_bytes.to_bytes(8, "little")) == HEAD_BYTES


def test_the_catalogue_is_json():
    assert [f["name"] for f in json.loads(json.dumps(catalogue()))] == [f.name for f in FORMATS]


def test_the_sniffer_needs_neither_torch_nor_numpy():
    code = "import sys, app.formats; print([m for m in ('torch', 'numpy', 'worker') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
