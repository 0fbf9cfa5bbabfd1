"""What is told beside the picture: all of it is seen, and what says how the picture looks stays."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from app.errors import InputRefused
from app.limits import Limits
from worker.__main__ import main
from worker.images import avif_walk, tiff_walk
from worker.images.picture import open_picture
from worker.images.private import stripped

PIXELS = np.random.default_rng(3).integers(0, 255, (20, 33, 3), dtype=np.uint8)


def coded(form: str, mode: str = "RGB", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(out, form, **options)
    return out.getvalue()


@pytest.mark.parametrize("name, form", [("a.gif", "GIF"), ("a.bmp", "BMP"), ("a.avif", "AVIF"), ("a.webp", "WEBP"), ("a.jpg", "JPEG"), ("a.tif", "TIFF"), ("a.jxl", "JXL")])
def test_bytes_after_the_end_are_seen(name, form):
    data = coded(form)
    assert open_picture(name, data).findings == []
    assert open_picture(name, data + b"PK\x03\x04hidden").findings == [{"where": "after the end", "what": "hidden bytes", "bytes": 10}]


def test_tags_of_a_tiff_are_seen_also_where_it_is_kept():
    found = open_picture("a.tif", coded("TIFF", "CMYK", tiffinfo={315: "me"}))
    assert found.pixels is None and found.findings == [{"where": "tag 315", "what": "metadata", "bytes": 0, "detail": "Artist"}]
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


@pytest.mark.parametrize("options", [{"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"save_all": True, "append_images": [Image.fromarray(PIXELS[:9])]}, {"big_tiff": True}, {"tiffinfo": {315: "a name that is long", 34853: {1: "N"}}}])
def test_all_of_a_tiff_belongs_to_it(options):
    data = coded("TIFF", **options)
    assert tiff_walk.end(data) == len(data) and len(data) - 16 < tiff_walk.end(data + b"x") <= len(data)
    assert "hidden bytes" not in [f["what"] for f in open_picture("a.tif", data).findings]
    assert open_picture("a.tif", data + b"hidden!").findings[-1]["what"] == "hidden bytes"


@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_tiff_breaks_the_walk(junk, at):
    data = coded("TIFF")
    broken = data[:at] + junk + data[at + len(junk) :]
    assert 0 <= tiff_walk.end(broken) <= len(broken)


def test_an_avif_whose_boxes_contradict_its_stream_is_refused():
    for options in ({}, {"subsampling": "4:0:0"}, {"quality": 100}):
        data = coded("AVIF", **options)
        (item,) = avif_walk.items(data)
        assert item.told == item.stream == (33, 20) and open_picture("a.avif", data).pixels is not None
    at = data.index(b"ispe") + 8
    for told in ((32, 20), (33, 1 << 20)):
        with pytest.raises(InputRefused, match="stream 33 x 20") as refused:
            open_picture("a.avif", data[:at] + struct.pack(">II", *told) + data[at + 8 :])
        assert refused.value.type == "invalid-image"
    alpha = io.BytesIO()
    Image.fromarray(np.dstack([PIXELS, PIXELS[:, :, :1]])).save(alpha, "AVIF")
    assert [i.told == i.stream == (33, 20) for i in avif_walk.items(alpha.getvalue())] == [True, True]
    with pytest.raises(InputRefused) as refused:
        open_picture("a.avif", data, Limits(image_pixels=600))
    assert refused.value.type == "limit-pixels"


@given(st.binary(max_size=60), st.integers(0, 600))
def test_no_avif_breaks_the_walk(junk, at):
    data = coded("AVIF")
    avif_walk.items(data[:at] + junk + data[at + len(junk) :])


def test_what_is_told_is_listed_as_for_models(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "secret"
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(coded("JPEG", exif=exif.tobytes(), comment=b"hello") + b"tail")
    (tmp_path / "r.json").write_text(json.dumps({"steps": [{"method": "image", "target": {"psnr": 20}, "candidates": ["jpeg"], "effort": "fast"}]}))
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--recipe", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["sanitized"] == {"mode": "strip", "findings": [{"where": "a.jpg, EXIF", "what": "metadata"}, {"where": "a.jpg, text comment", "what": "text"}, {"where": "a.jpg, after the end", "what": "hidden bytes"}]}


def with_part(form: str) -> bytes:
    """A picture with a part that no viewer knows, in its middle or at its end."""
    data = coded(form)
    if form == "PNG":
        return data[:33] + struct.pack(">I", 6) + b"prVthidden" + struct.pack(">I", zlib.crc32(b"prVthidden")) + data[33:]
    if form == "WEBP":
        body = data[8:] + b"prVt" + struct.pack("<I", 6) + b"hidden"
        return b"RIFF" + struct.pack("<I", len(body)) + body
    box = struct.pack(">I", 14) + b"prVthidden"
    if form == "JXL":
        container = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "
        return container + box + struct.pack(">I", 8 + len(data)) + b"jxlc" + data
    return data + box


@pytest.mark.parametrize("name, form", [("a.png", "PNG"), ("a.webp", "WEBP"), ("a.avif", "AVIF"), ("a.jxl", "JXL")])
def test_parts_that_no_viewer_needs_are_seen_and_do_not_stay(name, form):
    found = open_picture(name, with_part(form))
    assert [(f["where"], f["what"]) for f in found.findings] == [("part 'prVt'", "hidden bytes")]
    bare = stripped(form, found.data)
    assert bare is None or b"hidden" not in bare and np.array_equal(open_picture(name, bare).pixels, found.pixels)
    assert open_picture(name, coded(form)).findings == [] and (form in ("PNG", "WEBP")) == (bare is not None)
