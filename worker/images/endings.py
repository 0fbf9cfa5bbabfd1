"""Where a picture's file ends, whatever follows: bytes that no viewer shows may hide something."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

import pillow_jxl  # noqa: F401  registers JPEG XL
from PIL import Image

from app.limits import shown
from worker.images import png_walk, tiff_walk

EOI, SOS = 0xD9, 0xDA
_EMPTY = (b"free", b"skip", b"uuid")
NO_LENGTH = (0x01, *range(0xD0, 0xD9))
"""Markers of JPEG that nothing belongs to."""


def end(form: str, data: bytes) -> int:
    """Where the last part that belongs to the picture ends, of formats that say so; else the length of the file.

    Args:
        form: as Pillow calls it.
    """
    if form == "JPEG":
        return _jpeg_end(data)
    if form == "WEBP":
        return 8 + struct.unpack_from("<I", data, 4)[0]
    if form == "BMP":
        return max(struct.unpack_from("<I", data, 2)[0], 54) if len(data) >= 6 else len(data)
    if form == "GIF":
        return _gif_end(data)
    if form == "TIFF":
        return tiff_walk.end(data)
    if form == "JXL" and data.startswith(b"\xff\x0a"):
        return _bare_jxl_end(data)
    if form == "AVIF" or form == "JXL" and data.startswith(b"\0\0\0\x0cJXL "):
        return _boxes_end(data)
    return len(data)


PARTS = {
    "WEBP": (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"),
    "AVIF": (b"ftyp", b"meta", b"mdat", b"moov"),
    "JXL": (b"JXL ", b"ftyp", b"jxll", b"jxlc", b"jxlp", b"jxli", b"jbrd"),
    "PNG": png_walk.PICTURE,
}  # fmt: skip
_TOLD = (b"EXIF", b"Exif", b"XMP ", b"xml ", *png_walk.TEXTS)
"""Parts that are told by what stands in them."""


def strange(form: str, data: bytes) -> Iterator[tuple[str, int]]:
    """Parts that no viewer needs, of formats made of named parts: anything may stand in them. (name, bytes) of each."""
    parts = {"PNG": _chunks, "WEBP": _riff}.get(form, _boxes if data[4:8] in (b"ftyp", b"JXL ") else lambda data: ())
    for kind, size in parts(data) if form in PARTS else ():
        if kind not in (*PARTS[form], *_TOLD, *_EMPTY):
            yield shown(kind.decode("latin-1")), size


def _chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    return ((kind, len(content)) for kind, content in png_walk.chunks("", data))


def _riff(data: bytes) -> Iterator[tuple[bytes, int]]:
    at = 12
    while at + 8 <= min(len(data), end("WEBP", data)):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, length
        at += 8 + length + length % 2


def _bare_jxl_end(data: bytes) -> int:
    """A codestream without boxes says nowhere how long it is: its shortest part that decodes. Most have no byte too many, which one try shows."""
    if not _decodes(data[:-1]):
        return len(data)
    least, most = 2, len(data) - 1
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if _decodes(data[:middle]) else (middle + 1, most)
    return most


def _decodes(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=["JXL"]) as image:
            image.load()
        return True
    except (EOFError, OSError, RuntimeError, SyntaxError, ValueError):
        return False


def _boxes_end(data: bytes) -> int:
    """What follows the first box that holds nothing is no part of the picture."""
    at = 0
    for kind, size in _boxes(data):
        if kind in _EMPTY:
            break
        at += size
    return at


def _boxes(data: bytes) -> Iterator[tuple[bytes, int]]:
    """ISO base media boxes: size u32be (1: u64be after the type; 0: to the end), type of four printable characters."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if size == 1 and at + 16 <= len(data):
            (size,) = struct.unpack_from(">Q", data, at + 8)
        size = size or len(data) - at
        if size < 8 or at + size > len(data):
            return
        yield kind, size
        at += size


def _gif_end(data: bytes) -> int:
    """GIF89a: a header, a table of colours, then blocks to 3B: 21 label, or 2C place, a table, the width of codes; each with sub-blocks (length u8, data) to one of length 0."""
    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    try:
        at = 13 + table(data[10])
        while data[at] != 0x3B:
            at += 2 if data[at] == 0x21 else 11 + table(data[at + 9])
            while data[at]:
                at += 1 + data[at]
            at += 1
        return at + 1
    except IndexError:
        return len(data)


def scan_end(data: bytes, at: int) -> int:
    """Of a scan of JPEG that begins at `at`."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        if data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
            at += 2
        else:
            return at
    return len(data)


def _jpeg_end(data: bytes) -> int:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == EOI:
            return at + 2
        if marker == 0xFF:
            at += 1
        elif marker in NO_LENGTH:
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
            at = scan_end(data, at) if marker == SOS else at
    return at + 2 if data[at : at + 2] == b"\xff\xd9" else len(data)
