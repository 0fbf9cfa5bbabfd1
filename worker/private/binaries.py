"""What a file that is no text tells: its printable bytes are looked at, and those that tell are written over where nothing guards them."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from worker.private.patterns import PATH, Span, disjoint, secrets
from worker.private.texts import finding

_INFLATED = 64 << 20
_PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_GUARDED = (*_PACKED, b"PK", b"\x89PNG", b"PAR1", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"\x80", b"Rar!")
"""How files begin in which bytes that are written over would break a checksum, a length or an opcode."""
_HOMES = re.compile(r"/(?:home|Users|root|mnt|scratch|workspace)/[\w.+~-]{1,64}(?:/[\w.+~=@ -]{1,128}){0,40}|[A-Za-z]:\\{1,2}Users\\{1,2}[\w.$ -]{1,64}(?:\\{1,2}[\w.$ -]{1,128}){0,40}")
_MAILS = re.compile(r"[A-Za-z0-9][\w.+-]{1,63}@(?:[A-Za-z0-9-]{2,63}\.){1,4}(?:com|org|net|edu|gov|io|ai|dev)(?![\w])")
_FILL = b"*"
_RUN = re.compile(rb"[\t\n\r\x20-\x7e]{7,}")


class Seen(NamedTuple):
    """Attributes: findings: `{where, what, masked}`. clean: the bytes without them; None where the file can only be left out as a whole."""

    findings: list[dict]
    clean: bytes | None


def look(path: str, data: bytes) -> Seen:
    """Args: path: for the findings, and to know a sentencepiece model by, whose pieces are not looked at."""
    ranges = _beside_pieces(data) if path.endswith(".model") else [(0, len(data))]
    spans = disjoint([Span(a + s.start, a + s.end, s.what) for a, b in ranges for s in _spans(data[a:b])])
    found = [finding(path, s.what, data[s.start : s.end].decode("latin-1")) for s in spans]
    for name, inner in _inside(data):
        found += [finding(f"{path}: {name}" if name else path, s.what, inner[s.start : s.end].decode("latin-1")) for s in _spans(inner)]
    if not found:
        return Seen([], data)
    if data.startswith(_GUARDED):
        return Seen(found, None)
    out = bytearray(data)
    for s in spans:
        out[s.start : s.end] = _FILL * (s.end - s.start)
    return Seen(found, bytes(out))


def _spans(data: bytes) -> list[Span]:
    """In its printable runs alone, so that weights and compressed bytes are passed over fast."""
    return [Span(m.start() + s.start, m.start() + s.end, s.what) for m in _RUN.finditer(data) for s in _in_run(m.group().decode("latin-1"))]


def _in_run(text: str) -> list[Span]:
    found = list(secrets(text))
    found += [Span(*m.span(), PATH) for m in _HOMES.finditer(text)]
    return disjoint(found + [Span(*m.span(), "an e-mail address") for m in _MAILS.finditer(text)])


def _inside(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What a packed file holds, as far as it can be looked into within bounds."""
    try:
        for head, opened in _PACKED.items():
            if data.startswith(head):
                with opened(io.BytesIO(data)) as f:
                    yield "", f.read(_INFLATED)
        if data.startswith(b"PK"):
            left = _INFLATED
            with zipfile.ZipFile(io.BytesIO(data)) as z:
                for member in z.infolist()[:10_000]:
                    with z.open(member) as f:
                        inner = f.read(left)
                    left -= len(inner)
                    yield member.filename.encode("ascii", "replace").decode()[:80], inner
    except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, lzma.LZMAError):
        return


def _beside_pieces(data: bytes) -> list[tuple[int, int]]:
    """Where a sentencepiece model (a protobuf message) holds anything but its pieces, which are its field 1; all of it where it is no such message.

    field = varint(number << 3 | type) then  0: varint | 1: 8 bytes | 2: varint length, bytes | 5: 4 bytes
    """
    out, at = [], 0
    try:
        while at < len(data):
            start = at
            tag, at = _varint(data, at)
            if tag & 7 == 2:
                length, at = _varint(data, at)
                at += length
            elif tag & 7 == 0:
                _, at = _varint(data, at)
            elif tag & 7 in (1, 5):
                at += 8 if tag & 7 == 1 else 4
            else:
                raise ValueError
            if tag >> 3 == 0 or at > len(data):
                raise ValueError
            if tag >> 3 != 1:
                out.append((start, at))
    except (ValueError, IndexError):
        return [(0, len(data))]
    return out


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    raise ValueError
