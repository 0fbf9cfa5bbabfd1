"""What is taken of a stranger's images, and what is said of the rest."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from app.errors import InputRefused
from worker.images.jxl_header import jxl_header
from worker.images.colours import is_srgb
from worker.images.picture import FORMATS, open_picture
from worker.images.private import stripped

CORPUS = Path(__file__).parents[4] / "shared" / "hostile" / "corpus.tar.xz"
PHOTO = np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8)


def file(form: str, image: Image.Image | None = None, **options) -> bytes:
    out = io.BytesIO()
    (image or Image.fromarray(PHOTO)).save(out, form, **options)
    return out.getvalue()


def named(form: str) -> str:
    return "x" + next(end for end, f in FORMATS.items() if f == form)


@pytest.mark.skipif(not CORPUS.exists(), reason="the hostile corpus is not beside this clone")
def test_the_corpus(tmp_path):
    with tarfile.open(CORPUS) as t:
        t.extractall(tmp_path, filter="data")
    folder = next(tmp_path.rglob("manifest.json")).parent
    images = [f for f in json.loads((folder / "manifest.json").read_text())["files"] if f["family"] == "image"]
    got = {}
    for f in images:
        try:
            open_picture(f["name"], (folder / f["name"]).read_bytes())
            got[f["name"]] = ""
        except InputRefused as e:
            got[f["name"]] = e.type
    assert got == {f["name"]: f["reason"] for f in images}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "AVIF", "JXL", "GIF", "BMP", "TIFF"])
def test_every_format_opens_and_one_that_is_cut_off_does_not(form):
    data = file(form)
    assert open_picture(named(form), data).pixels.shape == (24, 20, 3)
    for part in (data[: len(data) // 2], data[:20], b""):
        with pytest.raises(InputRefused) as e:
            open_picture(named(form), part)
        assert e.value.type == "invalid-image"
    with pytest.raises(InputRefused):
        open_picture(named("PNG" if form != "PNG" else "JPEG"), data)


def test_what_codecs_would_change_is_kept_with_the_reason():
    frames = [Image.fromarray(PHOTO), Image.fromarray(255 - PHOTO)]
    deep = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 100)
    for form, data, why in (
        ("GIF", file("GIF", frames[0], save_all=True, append_images=frames[1:]), "animated"),
        ("WEBP", file("WEBP", frames[0], save_all=True, append_images=frames[1:]), "animated"),
        ("PNG", file("PNG", frames[0], save_all=True, append_images=frames[1:]), "animated"),
        ("AVIF", file("AVIF", frames[0], save_all=True, append_images=frames[1:]), "animated"),
        ("JPEG", file("JPEG", frames[0].convert("CMYK")), "CMYK"),
        ("PNG", file("PNG", deep), "16 bits"),
        ("TIFF", file("TIFF", deep), "16 bits"),
        ("JXL", file("JXL", deep, lossless=True), "16 bits"),
    ):
        picture = open_picture(named(form), data)
        assert picture.pixels is None and why in picture.reason, (form, picture.reason)


def test_palette_bits_and_alpha_are_written_out_and_said():
    base = Image.fromarray(PHOTO)
    palette = base.quantize(16)
    see_through = palette.copy()
    see_through.info["transparency"] = 3
    for image, mode, notes in ((palette, "RGB", 1), (see_through, "RGBA", 1), (base.convert("1"), "L", 1), (base.convert("L"), "L", 0), (base.convert("LA"), "RGBA", 1), (base.convert("RGBA"), "RGBA", 0)):
        options = {"transparency": 3} if image is see_through else {}
        picture = open_picture("x.png", file("PNG", image, **options))
        assert (picture.mode, len(picture.notes)) == (mode, notes)
    assert np.array_equal(open_picture("x.png", file("PNG", palette)).pixels, np.asarray(palette.convert("RGB")))


def test_an_image_is_turned_upright_and_what_it_tells_is_listed_and_can_be_stripped():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "somewhere"
    exif.get_ifd(0x8825)[2] = (1.0, 2.0, 3.0)
    for form in ("JPEG", "PNG", "WEBP"):
        data = file(form, exif=exif.tobytes(), **({"comment": b"by me"} if form == "JPEG" else {"quality": 100} if form == "WEBP" else {})) + (b"tail" if form == "JPEG" else b"")
        picture = open_picture(named(form), data)
        assert picture.turned and picture.pixels.shape == (20, 24, 3) and b"somewhere" in picture.beside["exif"]
        told = {(f["where"], f["what"]) for f in picture.findings}
        assert {("EXIF", "metadata"), ("EXIF", "GPS position")} <= told and (form != "JPEG" or {("text comment", "text"), ("after the end", "hidden bytes")} <= told)
        bare = open_picture(named(form), stripped(form, data))
        assert bare.findings == [] and np.array_equal(np.rot90(bare.pixels, -1), picture.pixels)


def test_a_profile_that_is_srgb_needs_no_bytes_and_another_one_stays():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert is_srgb(srgb) and not is_srgb(srgb[: len(srgb) // 2]) and not is_srgb(b"")
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert open_picture("x.jpg", file("JPEG", icc_profile=srgb)).icc is None
    assert open_picture("x.jpg", file("JPEG", icc_profile=lab)).icc == lab


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (300, 7), (16, 9), (1000, 999), (4096, 2160)])
def test_the_header_of_jpeg_xl_tells_its_size(size):
    for mode in ("L", "RGB"):
        found = jxl_header("x.jxl", file("JXL", Image.new(mode, size), effort=1))
        assert (found.width, found.height, found.bits, found.animated) == (*size, 8, False)
