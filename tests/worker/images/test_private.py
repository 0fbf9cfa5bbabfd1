"""What is told beside the picture: all of it is seen, and what says how the picture looks stays."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from worker.__main__ import main
from worker.images.picture import open_picture

PIXELS = np.random.default_rng(3).integers(0, 255, (20, 33, 3), dtype=np.uint8)


def coded(form: str, mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("name, form", [("a.gif", "GIF"), ("a.bmp", "BMP"), ("a.avif", "AVIF"), ("a.webp", "WEBP"), ("a.jpg", "JPEG")])
def test_bytes_after_the_end_are_seen(name, form):
    data = coded(form)
    assert open_picture(name, data).findings == []
    assert open_picture(name, data + b"PK\x03\x04hidden").findings == [{"what": "bytes after the end", "bytes": 10}]


def test_tags_of_a_tiff_are_seen_also_where_it_is_kept():
    found = open_picture("a.tif", coded("TIFF", "CMYK", tiffinfo={315: "me"}))
    assert found.pixels is None and found.findings == [{"what": "tag 315", "bytes": 0, "detail": "Artist"}]
    assert open_picture("a.tif", coded("TIFF", "CMYK")).findings == []


def test_colours_that_are_not_srgb_are_not_dropped():
    png = coded("PNG")

    def with_chunk(kind: bytes, content: bytes):
        chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        return open_picture("a.png", png[:33] + chunk + png[33:])

    assert "gAMA 1" in with_chunk(b"gAMA", struct.pack(">I", 100_000)).reason and "cICP" in with_chunk(b"cICP", b"\x09\x10\x00\x01").reason
    assert with_chunk(b"gAMA", struct.pack(">I", 45_455)).pixels is not None and with_chunk(b"cICP", b"\x01\x0d\x00\x01").pixels is not None


@pytest.mark.parametrize("sanitize", ["strip", "report"])
def test_a_turned_jpeg_stays_upright_without_loss(tmp_path, sanitize):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "secret"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(coded("JPEG", exif=exif.tobytes()))
    for source, out, recipe in (("in", "out", {"method": "image", "lossless": True, "effort": "fast"}), ("out", "back", {"method": "restore"})):
        (tmp_path / "r.json").write_text(json.dumps({"steps": [recipe]}))
        assert main([str(tmp_path / source), str(tmp_path / out), "--recipe", str(tmp_path / "r.json"), *(["--sanitize", sanitize] if out == "out" else [])]) == 0
    again = (tmp_path / "back/a.jpg").read_bytes()
    upright = [ImageOps.exif_transpose(Image.open(io.BytesIO(d))) for d in (again, (tmp_path / "in/a.jpg").read_bytes())]
    assert np.array_equal(*map(np.asarray, upright)) and (b"secret" in again) == (sanitize == "report")
