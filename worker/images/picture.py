"""A stranger's image file, opened: bounds are kept before anything is decoded, and what cannot be coded without changing it silently is named."""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass, field

import numpy as np
import pillow_jxl  # noqa: F401  registers JPEG XL
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from app.errors import InputRefused
from app.formats import IMAGES, suffix
from app.limits import Limits, shown
from worker.images import png_walk, private
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
_GAMMA, _PLACES = 0.45455, (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # of sRGB, as PNG tells them


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


def _deep(bits: int) -> str:
    return f"its samples have {bits} bits, and the codecs here take 8"


def _read(path: str, data: bytes, form: str, image: Image.Image) -> Picture:
    made = Picture(path, data, form, *image.size)
    made.findings = private.findings(image, data)
    if getattr(image, "is_animated", False):
        made.reason = "it has more than one page" if form == "TIFF" else "it is animated: more than one frame"
    elif form == "PNG" and (bits := png_walk.header(path, data)[2]) == 16 or form == "AVIF" and (bits := _avif_bits(data)) != 8:
        made.reason = _deep(bits)
    elif form == "TIFF" and any(b != 8 and b != 1 for b in _tiff_bits(image)):
        made.reason = _deep(max(_tiff_bits(image)))
    elif why := _colours(form, data, image):
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
    if made.icc and is_srgb(made.icc):
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


def _colours(form: str, data: bytes, image: Image.Image) -> str:
    """Why its colours would look otherwise without what tells of them (PNG's gAMA, cHRM and cICP; AVIF's colr of type nclx), which nothing here carries; empty where they are those of sRGB."""
    if form == "AVIF":
        at = data.find(b"colrnclx", 0, 1 << 20)
        primaries, transfer = struct.unpack_from(">HH", data, at + 8) if 0 <= at <= len(data) - 12 else (1, 13)
        return "" if primaries in (1, 2) and transfer in (1, 2, 6, 13) else f"its colours are of primaries {primaries} and transfer {transfer} (CICP), not sRGB"
    if form != "PNG":
        return ""
    if (cicp := next((c for kind, c in png_walk.chunks("", data) if kind == b"cICP"), b"")) and cicp[:2] != b"\1\x0d":
        return f"its colours are of primaries {cicp[0]} and transfer {cicp[1:2].hex()} (cICP), not sRGB"
    if cicp or "icc_profile" in image.info or "srgb" in image.info:
        return ""
    gamma, places = image.info.get("gamma", _GAMMA), image.info.get("chromaticity", _PLACES)
    if abs(gamma - _GAMMA) > 0.02 or max(abs(a - b) for a, b in zip(places, _PLACES, strict=True)) > 0.01:
        return f"its colours (gAMA {gamma:g}, cHRM) are not those of sRGB, and the codecs here would drop what tells so"
    return ""


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


def _avif_bits(data: bytes) -> int:
    """Bits of a sample by the first av1C box (AV1 in ISOBMFF, section 2.3): high_bitdepth, twelve_bit."""
    at = data.find(b"av1C", 0, 1 << 20)
    flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
    return (12 if flags & 0x20 else 10) if flags & 0x40 else 8


def _tiff_bits(image: Image.Image) -> tuple[int, ...]:
    bits = image.tag_v2.get(258, (1,))
    return bits if isinstance(bits, tuple) else (bits,)


def is_srgb(icc: bytes) -> bool:
    """Whether a profile maps a grid of colours to where sRGB has them, to a level of 255."""
    grid = Image.fromarray(np.stack(np.meshgrid(*[np.linspace(0, 255, 6).astype(np.uint8)] * 3), -1).reshape(6, 36, 3))
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        mapped = ImageCms.profileToProfile(grid, given, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:  # grey profiles, and what is none
        return False
    return int(np.abs(np.asarray(mapped).astype(int) - np.asarray(grid)).max()) <= 1
