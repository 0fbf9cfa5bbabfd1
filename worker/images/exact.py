"""The smallest file that keeps every pixel: PNG, WebP and JPEG XL without loss; of a JPEG, JPEG XL that holds the very file."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass

import numpy as np
from pillow_jxl import Decoder, Encoder
from PIL import Image

from app.errors import AccountingMismatch
from app.limits import shown
from worker.images.codecs import CODECS
from worker.images.picture import Picture

REPACKED = "jxl of the JPEG itself"
_EFFORT = {"fast": 4, "normal": 7, "best": 9}


@dataclass(frozen=True)
class Kept:
    """A file of the same pixels. `whole`: the original file itself comes out of it, byte for byte."""

    codec: str
    data: bytes
    seconds: float
    whole: bool = False

    @property
    def variant(self) -> str:
        return REPACKED if self.whole else "lossless"

    def told(self) -> dict:
        return {"codec": self.codec, "variant": self.variant, "bytes": len(self.data), "seconds": round(self.seconds, 3), "meets": True}


def keep(picture: Picture, candidates: list[str], effort: str, beside: bool, strip: bytes | None) -> tuple[list[Kept], dict[str, str]]:
    """Each candidate's file, and why others have none.

    Args:
        strip: the original file without what is to be stripped, where a JPEG is to be packed.

    Raises:
        AccountingMismatch: a file does not decode to the same pixels.
    """
    made, skipped = [], {}
    if "jxl" in candidates and strip is not None:
        start = time.perf_counter()
        data = repacked(strip, effort)
        if unpacked(data) == strip:
            others = {name: "of a JPEG the very file is kept, not only its pixels" for name in candidates if name != "jxl"}
            return [Kept("jxl", data, time.perf_counter() - start, whole=True)], others
    for name in candidates:
        codec, start = CODECS[name], time.perf_counter()
        if why := codec.refuses(picture):
            skipped[name] = why
            continue
        data = _encoded(picture, name, effort, beside)
        if not np.array_equal(codec.decode(data, picture.mode), picture.pixels):
            raise AccountingMismatch(f"{shown(picture.path)} does not come out of {name} as it went in")
        made.append(Kept(name, data, time.perf_counter() - start))
    return made, skipped


def _encoded(picture: Picture, name: str, effort: str, beside: bool) -> bytes:
    codec, image = CODECS[name], picture.image
    options = dict(codec.lossless)
    if name == "jxl":
        options["effort"] = _EFFORT[effort]
    if name == "webp":
        options["method"] = {"fast": 3, "normal": 5, "best": 6}[effort]
    if name == "png" and picture.mode in ("RGB", "L"):
        colours = image.getcolors(256)
        if picture.mode == "RGB" and colours is not None:
            image = image.quantize(len(colours), method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
            if not np.array_equal(np.asarray(image.convert("RGB")), picture.pixels):
                image = picture.image
    if picture.icc:
        options["icc_profile"] = picture.icc
    if beside:
        options |= {k: v for k, v in picture.beside.items() if k == "exif" or name != "png"}
    out = io.BytesIO()
    image.save(out, codec.form, **options)
    return out.getvalue()


def repacked(jpeg: bytes, effort: str) -> bytes:
    """A JPEG as JPEG XL, its coefficients and all else as they are."""
    encode = Encoder(mode="RGB", lossless=True, quality=100, decoding_speed=0, effort=_EFFORT[effort], use_container=True, use_original_profile=False, num_threads=-1)
    return bytes(encode(jpeg, 0, 0, jpeg_encode=True))


def unpacked(data: bytes) -> bytes | None:
    """The JPEG in a JPEG XL; None where there is none."""
    is_jpeg, _, found, _, _ = Decoder(num_threads=-1)(data)
    return bytes(found) if is_jpeg else None
