"""What each target begins with: small good files of its format, made here, so that a fuzzer need not find the format first."""

from __future__ import annotations

import io
import json
import os
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch


GOLDEN = Path(__file__).parents[1] / "tests" / "worker" / "formats" / "golden"


def names() -> list[str]:
    from fuzz.targets import TARGETS

    return list(TARGETS)


def memory() -> str:
    """A folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()


def write(name: str, folder: Path) -> None:
    for i, data in enumerate(_MADE.get(name, lambda: iter(()))()):
        (folder / f"made-{i}").write_bytes(data)


def _header() -> Iterator[bytes]:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    yield json.dumps({"__metadata__": {"a": "b"}, "w": entry}).encode()
    yield json.dumps({}).encode()


def _safetensors() -> Iterator[bytes]:
    yield from (struct.pack("<Q", len(h)) + h + bytes(8 if b"F32" in h else 0) for h in _header())


def _saved() -> Iterator[bytes]:
    x = torch.arange(16.0)
    for value in ({"w": x, "v": x[::2]}, {"model": {"a": x.reshape(4, 4).T}, "epoch": 3}, torch.nn.Linear(2, 2).state_dict()):
        out = io.BytesIO()
        torch.save(value, out)
        yield out.getvalue()


def _pickles() -> Iterator[bytes]:
    for data in _saved():
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            yield z.read(next(n for n in z.namelist() if n.endswith("data.pkl")))


def _zips() -> Iterator[bytes]:
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", method) as z:
            z.writestr("a/b.txt", b"abc" * 20)
            z.writestr("c", b"")
        yield out.getvalue()


def _tars() -> Iterator[bytes]:
    for mode, form in (("w", tarfile.PAX_FORMAT), ("w", tarfile.GNU_FORMAT), ("w:gz", tarfile.USTAR_FORMAT)):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode=mode, format=form) as t:
            for name in ("a/b", "x" * 120 if form != tarfile.USTAR_FORMAT else "y"):
                info = tarfile.TarInfo(name)
                info.size = 5
                t.addfile(info, io.BytesIO(b"hello"))
        yield out.getvalue()


def _tar_headers() -> Iterator[bytes]:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT):
        yield b"".join(tarfile.TarInfo(name).tobuf(form) for name in ("a/b", "c" * 90))


def _npys() -> Iterator[bytes]:
    for array in (np.arange(6, dtype="<f4").reshape(2, 3), np.asfortranarray(np.ones((2, 2), "<i8"))):
        out = io.BytesIO()
        np.save(out, array)
        yield out.getvalue()


def _npzs() -> Iterator[bytes]:
    for save in (np.savez, np.savez_compressed):
        out = io.BytesIO()
        save(out, a=np.arange(6, dtype="<i4"), b=np.ones((2, 2), "<f4"))
        yield out.getvalue()


class _Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x).relu()


def _programs() -> Iterator[bytes]:
    out = io.BytesIO()
    torch.export.save(torch.export.export(_Net(), (torch.ones(3, 2),), dynamic_shapes=({0: torch.export.Dim("n")},)), out)
    yield out.getvalue()


def _documents() -> Iterator[bytes]:
    for data in _programs():
        with zipfile.ZipFile(io.BytesIO(data)) as z:
            yield z.read(next(n for n in z.namelist() if n.endswith("models/model.json")))


def _chunks() -> Iterator[bytes]:
    from worker.kernels.chunks import Layout, encode_chunk
    from worker.kernels.scaled import Place

    rng = np.random.default_rng(0)
    bf16 = (rng.standard_normal(3000).astype("<f4").view("<u4") >> 16).astype("<u2")
    for at, layout, values in (
        (2, Layout("float", 2), bf16),
        (2, Layout("float", 2), np.where(rng.random(3000) < 0.8, 0, bf16).astype("<u2")),
        (12, Layout("codes", 4), rng.binomial(15, 0.5, 3000).astype(np.uint8)),
        (0, Layout("bytes", 1), np.tile(np.arange(50, dtype=np.uint8), 60)),
    ):
        data = encode_chunk(values, layout)
        yield struct.pack("<BHH", at, len(values) - 1, 60) + data[:8] + data[12:]
    data = encode_chunk(np.tile(bf16, 2), Layout("float", 2), place=Place(60, 0))
    yield struct.pack("<BHH", 2, 5999, 60) + data[:8] + data[12:]


def _packed() -> Iterator[bytes]:
    yield from (p.read_bytes() for p in sorted(GOLDEN.glob("*.packed.safetensors")))


def _indexes() -> Iterator[bytes]:
    from app.limits import Limits
    from worker.formats.packed_reader import open_packed

    for path in sorted(GOLDEN.glob("*.packed.safetensors")):
        with open_packed(path) as reader:
            yield reader._index_text(Limits())


def _table() -> pa.Table:
    return pa.table({"a": [1, 2, None], "s": ["x", "y", None], "l": [[1], [2, 3], None], "d": pa.array(["p", "q", "p"]).dictionary_encode()})


def _parquets() -> Iterator[bytes]:
    for compression in ("none", "snappy", "zstd"):
        out = io.BytesIO()
        pq.write_table(_table(), out, compression=compression)
        yield out.getvalue()


def _arrows() -> Iterator[bytes]:
    for compression in (None, "lz4"):
        out = io.BytesIO()
        with pa.ipc.new_file(out, _table().schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(_table())
        yield out.getvalue()


def _images() -> Iterator[bytes]:
    """Of each kind that Pillow writes here: small ones in colours, with EXIF and a comment where it takes them."""
    from PIL import Image

    from fuzz.targets import _SUFFIXES
    from worker.images.picture import FORMATS

    rng = np.random.default_rng(0)
    for at, end in enumerate(_SUFFIXES):
        for mode, shape in (("RGB", (24, 33, 3)), ("L", (16, 16))):
            image, out = Image.fromarray(rng.integers(0, 255, shape, np.uint8), mode), io.BytesIO()
            exif = Image.Exif()
            exif[0x010E], exif[0x0112] = "somebody", 6
            image.save(out, FORMATS[end], **({"exif": exif.tobytes()} if FORMATS[end] in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}))
            yield bytes([at]) + out.getvalue()


def _images_indexes() -> Iterator[bytes]:
    row = {"path": "a.png", "file": "a.avif", "codec": "avif", "mode": "RGB", "width": 3, "height": 2, "pixels": "ab" * 32, "exact": False, "whole": False}
    kept = {"path": "b.png", "file": "b.png", "codec": "original", "mode": None, "width": None, "height": None, "pixels": None, "exact": True, "whole": True}
    yield json.dumps({"format": "images", "version": 1, "model": None, "images": [row, kept]}).encode()


def _dataset_indexes() -> Iterator[bytes]:
    arrays = [{"name": "a", "descr": "'<f4'", "fortran": False, "shape": [2, 3], "grid": {"step": 0.5, "ratio": 2.0}}, {"name": "b", "descr": "[('x', '<i4', (2,)), ('y', '|S5')]", "fortran": True, "shape": [4]}]
    files = [{"path": "a.npz", "format": "npz", "stem": "0", "arrays": arrays}, {"path": "b.csv", "format": "other", "stem": "1", "size": 7}]
    yield json.dumps({"format": "dataset", "version": 1, "files": files, "kept": [{"path": "c"}]}).encode()


def _learned_codecs() -> Iterator[bytes]:
    from worker.images.learned.codec import encode
    from worker.images.learned.model import Model, dumped
    from worker.images.learned.network import Layer, inputs_of
    from worker.images.transform.basis import dct

    rng = np.random.default_rng(0)
    for channels in (1, 3):
        i, o = inputs_of(channels), 4 * channels
        layers = tuple(Layer(rng.integers(-3, 4, (b, a, 3, 3)).astype(np.int8), rng.integers(-9, 9, b).astype(np.int32), 6) for a, b in ((i, 5), (5, o)))
        for model in (Model(dct(channels), False, 40, layers), Model(dct(channels), True, 40)):
            kept = dumped(model)
            yield len(kept).to_bytes(4, "little") + kept + encode(rng.integers(0, 255, (19, 26, channels), np.uint8), 30, model)


def _told() -> Iterator[bytes]:
    telling = 'mail bob@example.com, key AKIAIOSFODNN7EXAMPLE, at /home/bob/x and http://10.0.0.1:8080/ with password: hunter22'
    document = json.dumps({"author": telling, "model": {"vocab": {"a": 0}}, "x": [telling]})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a", telling)
    piece = b"\x0a\x04\x0a\x02ab" + b"\x12\x14" + b"/home/bob/model.spm\x00"
    for at, data in ((0, document.encode()), (1, (document + "\n" + document).encode()), (2, telling.encode()), (3, document.encode()), (4, piece), (5, packed.getvalue()), (6, telling.encode())):
        yield bytes([at]) + data


def _requests() -> Iterator[bytes]:
    yield b"\x20GET /v1/jobs?wait=1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer b\r\n\r\nPOST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"
    yield b"\x30POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\nGET / HTTP/1.0\r\n\r\n"


_MADE = {
    "safetensors": _safetensors, "safetensors_header": _header, "json": _header, "sniff": lambda: (b"\0" + d for d in _safetensors()), "pickle": _pickles,
    "pickle_scan": lambda: (b"\1" + d for d in _pickles()), "checkpoint": _pickles, "zip": _zips, "tar": _tars, "tar_fields": _tar_headers, "npy": _npys, "npz": _npzs,
    "packed": _packed, "packed_index": _indexes, "dataset_npy": _npys, "dataset_npz": _npzs, "dataset_parquet": _parquets, "dataset_arrow": _arrows,
    "dataset_csv": lambda: iter([b"a,b\n1,x\n2,y\n", b'"a";"b"\r\n1.5;"x"\r\n', b"2024-01-01\t7\n"]), "dataset_index": _dataset_indexes, "image": _images, "images_index": _images_indexes, "learned_codec": _learned_codecs, "private": _told, "wire": _requests, "pt2": _programs, "pt2_program": _documents, "chunk": _chunks,
    "pt2_treespec": lambda: iter([b'[1, {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": null, "context": null, "children_spec": []}]}]']),
    "pt2_expression": lambda: iter([b"Mul(Integer(2), Symbol('s77', positive=True, integer=True))", b"Pow(Symbol('s0'), Integer(2))"]),
}  # fmt: skip
