"""A stranger's image file, opened: bounds are kept before anything is decoded, and what cannot be coded without changing it silently is named."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass, field

import numpy as np
import pillow_jxl  # noqa: F401  registers JPEG XL
from PIL import Image, ImageOps, UnidentifiedImageError

from app.errors import InputRefused
from app.formats import IMAGES, suffix
from app.limits import Limits, shown
from worker.images import avif_walk, colours, png_walk, private
from worker.images.jxl_header import jxl_header
from worker.images.png_walk import invalid

FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".avif": "AVIF", ".jxl": "JXL", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
"""Pillow's name by suffix: no other decoder is ever asked, and none that starts a program (PostScript) is among them."""
assert set(FORMATS) == set(IMAGES)
Image.MAX_IMAGE_PIXELS = Limits().image_pixels
_MODES = {"1": "L", "L": "L", "RGB": "RGB", "LA": "RGBA", "RGBA": "RGBA"}
_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
_ORIENTATION = 0x0112


@dataclass
class Picture:
    """An image that can be coded, or that is kept as it is.

    Args:
        path: relative, in the input.
        form: as Pillow calls it.
        pixels: [H, W, C] uint8, upright; C is 1 (grey), 3 (RGB) or 4 (RGB and alpha). None where it is kept as it is, and `reason` says why.
        icc: colour profile that the pixels are in; None for sRGB, or where none is told.
        beside: `exif`, its orientation taken out, and `xmp`, which the coded file may carry.
        turned: the orientation (2 to 8) that its EXIF tells, where it is turned or mirrored; the pixels are upright.
        notes: what is done to it beside coding.
    """

    path: str
    data: bytes
    form: str
    width: int
    height: int
    pixels: np.ndarray | None = None
    reason: str = ""
    icc: bytes | None = None
    beside: dict[str, bytes] = field(default_factory=dict)
    turned: int = 0
    findings: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def mode(self) -> str:
        return {1: "L", 3: "RGB", 4: "RGBA"}[self.pixels.shape[2]]

    @property
    def image(self) -> Image.Image:
        """For Pillow's encoders."""
        return Image.fromarray(self.pixels[:, :, 0] if self.pixels.shape[2] == 1 else self.pixels)


def open_picture(path: str, data: bytes, limits: Limits = Limits()) -> Picture:
    """Args:
        path: its suffix says what it is to be.

    Raises:
        InputRefused: invalid-image, where it is something else, cut off or damaged; limit-pixels; limit-expand.
    """
    form = FORMATS[suffix(path)]
    if form == "PNG":
        _bound(path, *png_walk.header(path, data)[:2], limits)
        png_walk.check_content(path, data)
    if form == "JXL":
        found = jxl_header(path, data)
        _bound(path, found.width, found.height, limits)
        if found.animated or found.bits != 8:
            return Picture(path, data, form, found.width, found.height, reason="it is animated" if found.animated else _deep(found.bits))
    if form == "AVIF":
        _check_stream(path, data, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=[form]) as image:
                _bound(path, *image.size, limits)
                return _read(path, data, form, image)
        except InputRefused:
            raise
        except Image.DecompressionBombError as e:
            raise InputRefused("limit-pixels", f"{shown(path)} has too many pixels: {e}") from None
        except (MemoryError, OSError) as e:
            if isinstance(e, MemoryError) or (e.errno is not None and not isinstance(e, UnidentifiedImageError)):
                raise  # of the machine, not of the image
            raise invalid(path, _said(e)) from None
        except (ArithmeticError, AttributeError, EOFError, IndexError, KeyError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error) as e:
            raise invalid(path, _said(e)) from None


def _said(e: Exception) -> str:
    text = str(e).splitlines()[0][:120] if str(e) else type(e).__name__
    return "no decoder takes it" if isinstance(e, UnidentifiedImageError) else ascii(text)[1:-1]


def _bound(path: str, width: int, height: int, limits: Limits) -> None:
    if width * height > limits.image_pixels or not width or not height:
        raise InputRefused("limit-pixels", f"{shown(path)} has {width} x {height} pixels; at most {limits.image_pixels} are taken, and one at least")


def _check_stream(path: str, data: bytes, limits: Limits) -> None:
    """Of an AVIF, whose decoder makes as many pixels as the stream says, whatever its boxes tell."""
    for item in avif_walk.items(data):
        if item.stream:
            _bound(path, *item.stream, limits)
        if item.told and item.stream and item.told != item.stream:
            raise invalid(path, "its boxes say {} x {} pixels, and its stream {} x {}".format(*item.told, *item.stream))


def _deep(bits: int) -> str:
    return f"its samples have {bits} bits, and the codecs here take 8"


def _read(path: str, data: bytes, form: str, image: Image.Image) -> Picture:
    made = Picture(path, data, form, *image.size)
    made.findings = private.findings(image, data)
    if getattr(image, "is_animated", False):
        made.reason = "it has more than one page" if form == "TIFF" else "it is animated: more than one frame"
    elif form == "PNG" and (bits := png_walk.header(path, data)[2]) == 16 or form == "AVIF" and (bits := avif_walk.bits(data)) != 8:
        made.reason = _deep(bits)
    elif form == "TIFF" and any(b != 8 and b != 1 for b in _tiff_bits(image)):
        made.reason = _deep(max(_tiff_bits(image)))
    elif why := colours.other_than_srgb(form, data, image):
        made.reason = why
    elif image.mode not in (*_MODES, "P"):
        made.reason = f"its colours are {image.mode}, which the codecs here would have to convert"
    image.load()  # also of what is kept: a damaged one is refused
    if made.reason:
        return made
    if image.mode == "P":
        made.notes.append("its palette is written out as colours")
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif "transparency" in image.info:
        made.notes.append("its transparent colour is written out as alpha")
        image = image.convert("RGBA")
    elif image.mode in ("1", "LA"):
        made.notes.append({"1": "its bits are coded as grey", "LA": "grey with alpha is coded as colours with alpha"}[image.mode])
    made.icc = image.info.get("icc_profile") or None
    if made.icc and colours.is_srgb(made.icc):
        made.icc = None
        made.notes.append("its colour profile is sRGB, which is what a file without one means")
    upright, exif = _upright(image, made.notes)
    made.turned = image.getexif().get(_ORIENTATION, 0) if upright is not image else 0
    xmp = image.info.get("xmp")
    made.beside = ({"exif": exif} if exif else {}) | ({"xmp": xmp} if isinstance(xmp, bytes) and xmp else {})
    pixels = np.array(upright.convert(_MODES[upright.mode]), copy=True)
    made.pixels = pixels.reshape(*pixels.shape[:2], -1)
    made.height, made.width = made.pixels.shape[:2]
    return made


def _upright(image: Image.Image, notes: list[str]) -> tuple[Image.Image, bytes | None]:
    """Turned as its EXIF says, and the EXIF that then is true."""
    try:
        exif = image.getexif()
        orientation = exif.get(_ORIENTATION, 1)
        turned = ImageOps.exif_transpose(image) if orientation not in (0, 1) else image
        if turned is not image:
            notes.append("it is turned as its EXIF says, so that every viewer shows it upright")
        exif = turned.getexif()
        exif.pop(_ORIENTATION, None)
        return turned, exif.tobytes() if len(exif) else None
    except Exception:  # EXIF that cannot be read turns nothing
        notes.append("its EXIF cannot be read, and is left out")
        return image, None


def _tiff_bits(image: Image.Image) -> tuple[int, ...]:
    bits = image.tag_v2.get(258, (1,))
    return bits if isinstance(bits, tuple) else (bits,)
