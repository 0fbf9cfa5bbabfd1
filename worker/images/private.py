"""What an image file says beside its picture: EXIF (with GPS and thumbnails), XMP, comments, times. Listed, and taken out of the bytes where the format is simple.

    JPEG   FF D8 | FF marker, length u16be, data | ... | FF DA ... scan ... | FF D9 | what follows is no part of it
    WebP   "RIFF" length u32le "WEBP" | type, length u32le, data, padded to even | ...
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from PIL import ExifTags, Image

from worker.images import endings, png_walk

_KEPT_MARKERS = (0xE0, 0xE2, 0xEE)  # JFIF, ICC profile, Adobe's colour transform
_COM = 0xFE
_TELLING = ("comment", "Software", "Author", "Artist", "Copyright", "Description", "xmp", "XML:com.adobe.xmp", "photoshop")
_LONGEST = 80
_PICTURE_TAGS = (
    254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284, 290, 291, 292, 293, 296, 297, 301, 317, 318, 319, 320, 321, 322, 323, 324, 325,
    332, 334, 338, 339, 340, 341, 347, 512, 513, 514, 519, 520, 521, 529, 530, 531, 532, 34675,
)  # fmt: skip
"""Tags of TIFF 6.0 that say what the pixels are; all others tell something beside them."""


def findings(image: Image.Image, data: bytes) -> list[dict]:
    """`{where, what, bytes, detail?}` of each thing that is told beside the pixels: its place in the file, and its kind. The values themselves are not repeated: a report may be public.

    Args:
        image: opened, not necessarily decoded.
        data: the file.
    """
    found: list[dict] = []

    def add(where: str, what: str, nbytes: int, detail: str = "") -> None:
        found.append({"where": where, "what": what, "bytes": nbytes} | ({"detail": detail[:_LONGEST]} if detail else {}))

    if image.format == "TIFF":
        for tag in (t for t in image.tag_v2 if t not in _PICTURE_TAGS):
            add(f"tag {tag}", "GPS position" if tag == ExifTags.Base.GPSInfo else "metadata", 0, ExifTags.TAGS.get(tag, ""))
    if raw := image.info.get("exif"):
        tags, gps, thumbnail = _exif(image)
        add("EXIF", "metadata", len(raw), f"{tags} tags")
        if gps:
            add("EXIF", "GPS position", 0)
        if thumbnail:
            add("EXIF", "thumbnail", thumbnail)
    for key, value in image.info.items():
        text = value if isinstance(value, (bytes, str)) else ""
        if key in _TELLING or (image.format == "PNG" and key in getattr(image, "text", {})):
            add("XMP" if "xmp" in key.lower() else f"text {ascii(key)[1:-1][:_LONGEST]}", "metadata" if "xmp" in key.lower() else "text", len(text))
    if (rest := len(data) - endings.end(image.format, data)) > 0:
        add("after the end", "hidden bytes", rest)
    for name, size in endings.strange(image.format, data):
        add(f"part {name}", "hidden bytes", size)
    return found


def turned_by(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG with EXIF that says nothing but how it is turned."""
    body = b"Exif\0\0II\x2a\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + jpeg[2:]


def _exif(image: Image.Image) -> tuple[int, bool, int]:
    """Tags, whether a position is among them, bytes of the thumbnail. What cannot be read counts as no tag; it goes all the same."""
    try:
        exif = image.getexif()
        gps, small = exif.get_ifd(ExifTags.IFD.GPSInfo), exif.get_ifd(ExifTags.IFD.IFD1)
        length = small.get(ExifTags.Base.JpegIFByteCount, 0)
        return len(exif) + len(gps), bool(gps), length if isinstance(length, int) and 0 < length < 1 << 24 else 0
    except Exception:  # whatever a stranger's EXIF makes of the parser
        return 0, False, 0


def stripped(form: str, data: bytes) -> bytes | None:
    """The same file without what `findings` lists, its picture bit for bit as it was; None for a format that is not simple enough.

    Args:
        form: as Pillow calls it.
    """
    if form == "PNG":
        return png_walk.bare(data)
    if form == "JPEG":
        return b"".join(_jpeg_parts(data))
    if form == "WEBP":
        return _webp(data)
    return data[: endings.end(form, data)] if form == "BMP" else None


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """What is kept of a JPEG that a decoder has taken. What cannot be walked is kept from there on."""
    yield data[:2]
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == endings.EOI:
            yield data[at : at + 2]
            return
        if marker in endings.NO_LENGTH:
            yield data[at : at + 2]
            at += 2
            continue
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if marker == endings.SOS:
            end = endings.scan_end(data, end)
        if not (marker == _COM or 0xE0 <= marker <= 0xEF and marker not in _KEPT_MARKERS or _is_preview(marker, data[at + 4 : at + 20])):
            yield data[at:end]
        at = end
    yield data[at:]


def _is_preview(marker: int, head: bytes) -> bool:
    """JFXX thumbnails, and APP2 that is no ICC profile (MPF: further pictures after the end)."""
    return marker == 0xE0 and head.startswith(b"JFXX") or marker == 0xE2 and not head.startswith(b"ICC_PROFILE\0")


def _webp(data: bytes) -> bytes:
    end, at, kept = min(len(data), 8 + struct.unpack_from("<I", data, 4)[0]), 12, []
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        size = 8 + length + length % 2
        chunk = data[at : min(at + size, end)]
        if kind == b"VP8X" and length >= 1:
            chunk = chunk[:8] + bytes([chunk[8] & ~0x0C]) + chunk[9:]  # says that there is EXIF and XMP
        if kind in endings.PARTS["WEBP"]:
            kept.append(chunk)
        at += size
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body
