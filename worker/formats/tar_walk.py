"""Extracts a tar or tar.gz of a model folder in one pass: 512-byte headers, each followed by its member's content.

Of the extensions, GNU's long names and pax' `path` and `size` of one member are read; whatever else would change where or how a member is
written is refused (POSIX.1-2001 pax, GNU tar manual, "Basic Tar Format").
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import BinaryIO

from app.errors import InputRefused
from app.limits import Limits, shown
from worker.formats.archive import CHUNK, create
from worker.formats.member_names import check_names, invalid, unsafe

_BLOCK = 512
_EXTRA_BYTES, _EXTRA_RECORDS = 64 << 10, 64
"""Of one extra header. Python, GNU tar and bsdtar write a handful of records of a few dozen bytes."""


class _Plain:
    """Reads a tar's bytes, gzip or not, and counts them.

    Raises:
        InputRefused: limit-expand, invalid-archive (truncated, not gzip), unsafe-archive (bytes after the gzip member).
    """

    def __init__(self, f: BinaryIO, size: int, limits: Limits):
        self.f, self.budget, self.size = f, limits.expanded(size), size
        self.inflater = zlib.decompressobj(31) if f.read(2) == b"\x1f\x8b" else None
        f.seek(0)
        self.buffer, self.at, self.pending = b"", 0, b""

    def _more(self) -> bytes:
        if self.inflater is None:
            return self.f.read(CHUNK)
        while not self.inflater.eof:
            if not (data := self.pending or self.f.read(CHUNK >> 4)):
                raise invalid("the gzip stream is truncated")
            try:
                chunk = self.inflater.decompress(data, CHUNK)
            except zlib.error as e:
                raise invalid(f"the gzip stream is malformed: {e}") from None
            self.pending = self.inflater.unconsumed_tail
            if chunk:
                return chunk
        if self.inflater.unused_data or self.f.read(1):
            raise unsafe("bytes follow the gzip stream: a second stream, or something hidden")
        return b""

    def read(self, n: int) -> bytes:
        """Up to `n` bytes (n at most 1 MiB); fewer only at the end."""
        while len(self.buffer) - self.at < n and (chunk := self._more()):
            self.budget -= len(chunk)
            if self.budget < 0:
                raise InputRefused("limit-expand", f"the archive of {self.size} bytes expands to more than its limit")
            self.buffer, self.at = self.buffer[self.at :] + chunk, 0
        out = self.buffer[self.at : self.at + n]
        self.at += len(out)
        return out


def _number(field: bytes, what: str) -> int:
    """Octal digits, or GNU's base 256 (first byte 0x80)."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")  # what stands between them must be digits
    if not re.fullmatch(rb"[0-7]*", text):
        raise invalid(f"a tar header has {what} {shown(field.decode('latin-1'))}")
    return int(text or b"0", 8)


def _text(field: bytes) -> str:
    raw, _, rest = field.partition(b"\0")
    if rest.strip(b"\0"):
        raise unsafe(f"a member's name {shown(field.rstrip(bytes(1)).decode('latin-1'))} holds a NUL, where readers disagree on its end")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise unsafe(f"a member's name {shown(raw.decode('latin-1'))} is not UTF-8") from None


def _pax(data: bytes, everywhere: bool) -> dict[str, str]:
    """Records `"<length> <key>=<value>\\n"` (POSIX.1-2001). Only `path` and `size` of one member are used.

    Raises:
        InputRefused: for what changes where or how a member is written.
    """
    out: dict[str, str] = {}
    form, at, records = re.compile(rb"([1-9]\d{0,7}) "), 0, 0
    while at < len(data):
        records += 1
        if records > _EXTRA_RECORDS:
            raise InputRefused("limit-entries", f"a pax header has more than {_EXTRA_RECORDS} records")
        head = form.match(data, at)
        length = int(head[1]) if head else 0
        record = data[at : at + length]
        if not head or len(record) < length or record[-1:] != b"\n" or b"=" not in record:
            raise invalid("a pax header is malformed")
        key, _, value = data[head.end() : at + length - 1].partition(b"=")
        name = key.decode("latin-1")
        if name.startswith("GNU.sparse"):
            raise InputRefused("limit-expand", "a tar member is sparse: its size says nothing of what it expands to")
        if name in ("linkpath", "hdrcharset") or (name in ("path", "size") and (everywhere or name in out)):
            raise unsafe(f"a pax header sets {name}" + (" for every member" if everywhere else ""))
        if name in ("path", "size"):
            if b"\0" in value:
                raise unsafe(f"a pax header's {name} holds a NUL")
            out[name] = _text(value)
        at += length
    return out


def extract_tar(path: Path, target: Path, limits: Limits = Limits()) -> None:
    """One pass: what is refused is refused before it is written.

    Raises:
        InputRefused: invalid-archive, unsafe-archive, limit-entries, limit-expand, limit-name.
    """
    with path.open("rb") as f:
        _extract_tar(_Plain(f, path.stat().st_size, limits), target, limits)


def _extract_tar(source: _Plain, target: Path, limits: Limits) -> None:
    names: list[str] = []
    pending: dict[str, str] = {}
    headers = 0
    while True:
        block = source.read(_BLOCK)
        if len(block) < _BLOCK:
            raise invalid("the tar is truncated: it has no end" if headers else "not a tar")
        if not block.strip(b"\0"):
            break
        headers += 1
        if headers > 2 * limits.archive_entries:
            raise InputRefused("limit-entries", f"the archive has more than {limits.archive_entries} members")
        checksum = sum(block[:148]) + 8 * 32 + sum(block[156:])
        if _number(block[148:156], "checksum") != checksum:
            raise invalid(f"tar header {headers} has a wrong checksum: not a tar, or a damaged one")
        kind, size = block[156:157], _number(block[124:136], "size")
        if kind in (b"x", b"g", b"L"):
            if size > _EXTRA_BYTES or (pending and kind != b"g"):
                raise unsafe("a tar member has several or very large extra headers")
            data = _padded(source, size)
            if kind == b"L":
                pending = {"path": _text(data)}
            elif found := _pax(data, kind == b"g"):
                pending = found
            continue
        name = _name(block, pending)
        if "size" in pending:
            if not re.fullmatch(r"[0-9]{1,19}", pending["size"]) or size not in (0, int(pending["size"])):
                raise unsafe(f"member {shown(name)} has two sizes")
            size = int(pending["size"])
        pending = {}
        if kind == b"S":
            raise InputRefused("limit-expand", f"member {shown(name)} is sparse: its size says nothing of what it expands to")
        if kind not in (b"0", b"\0", b"5"):
            raise unsafe(f"member {shown(name)} is a link, a device or a pipe (tar type {kind!r}), not a file")
        if size > source.budget:
            raise InputRefused("limit-expand", f"member {shown(name)} announces {size} bytes, more than the archive of {source.size} bytes may hold")
        folder = kind == b"5" or name.endswith("/")
        if folder and size:
            raise unsafe(f"folder {shown(name)} has content")
        if folder and name.strip("./") == "" and name in (".", "./", ""):
            continue  # `tar -C folder .` starts with the folder itself
        names.append(name.rstrip("/") + "/" if folder else name)
        check_names(names[-1:], limits)
        if len(names) > limits.archive_entries:
            raise InputRefused("limit-entries", f"the archive has more than {limits.archive_entries} members")
        if not folder:
            _write(source, target, name, size)
    if pending:
        raise unsafe("an extra header belongs to no member")
    while block := source.read(CHUNK):
        if block.strip(b"\0"):
            raise unsafe("bytes follow the end of the tar")
    check_names(names, limits)
    if not any(not n.endswith("/") for n in names):
        raise invalid("the archive has no members")


def _name(block: bytes, pending: dict[str, str]) -> str:
    if "path" in pending:
        name = pending["path"]
    else:
        name, prefix = _text(block[:100]), block[345:500] if block[257:263] == b"ustar\0" else b""
        name = f"{_text(prefix)}/{name}" if prefix.strip(b"\0") else name
    return name.removeprefix("./") if name not in (".", "./") else name


def _padded(source: _Plain, size: int) -> bytes:
    padded = size + -size % _BLOCK
    data = source.read(padded)
    if len(data) < padded:
        raise invalid("the tar is truncated")
    return data[:size]


def _write(source: _Plain, target: Path, name: str, size: int) -> None:
    try:
        out = create(target, name)
    except OSError as e:
        if not isinstance(e, (FileExistsError, NotADirectoryError, IsADirectoryError)):
            raise
        raise unsafe(f"member {shown(name)} comes twice, or is a file and a folder") from None
    with out:
        left = size
        while left:
            chunk = source.read(min(left, CHUNK))
            if not chunk:
                raise invalid(f"the tar is truncated inside member {shown(name)}")
            out.write(chunk)
            left -= len(chunk)
    if len(source.read(-size % _BLOCK)) < -size % _BLOCK:
        raise invalid("the tar is truncated")
