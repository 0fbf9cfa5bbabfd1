"""A strict walk of a zip's structure, before anything in it is inflated.

    ┌ local header ┬ data ┬ (descriptor) ┐ ... ┌ central directory ┬ (zip64 end, locator) ┬ end record ┬ comment ┐
    0                                                                                                    size

Readers disagree on zips whose two directories differ, whose members overlap, or that have bytes before, between or after (PKWARE APPNOTE
6.3.10). Here the records must follow one another without a gap from the first byte to the last, and both directories must say the same.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from app.errors import InputRefused
from app.limits import Limits, shown
from worker.formats.member_names import check_names, invalid, unsafe

STORED, DEFLATED = 0, 8
_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s4H2IH")
_END64, _LOCATOR = struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_UTF8, _DESCRIPTOR = 1 << 11, 1 << 3
_FLAGS = _UTF8 | _DESCRIPTOR | 0b110  # bits 1 and 2 tell the deflate level; all others change how data is read


@dataclass(frozen=True, slots=True)
class Member:
    """`offset` is where its data starts; `csize` bytes there are `size` bytes once inflated."""

    name: str
    offset: int
    csize: int
    size: int
    method: int
    crc: int

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/")


def walk_zip(path: Path, limits: Limits = Limits(), entries: int | None = None) -> list[Member]:
    """All members, folders too, in the order of their data.

    Args:
        entries: how many there may be; by default `limits.archive_entries`.

    Raises:
        InputRefused: invalid-archive, unsafe-archive, limit-entries, limit-expand, limit-name.
    """
    size = path.stat().st_size
    entries = limits.archive_entries if entries is None else entries
    with path.open("rb") as f:
        count, start, end = _end_record(f, size, entries)
        f.seek(start)
        directory = f.read(end - start)
        found = _central(directory, count, limits)
        check_names([m.name for m, _, _ in found], limits)
        members, at = [], 0
        for member, flags, offset in sorted(found, key=lambda item: item[2]):
            if offset != at:
                what = "hidden bytes" if offset > at else "members overlap"
                raise unsafe(f"member {shown(member.name)} starts at byte {offset}, and what comes before it ends at {at}: {what}")
            member, at = _local(f, member, flags, offset, start)
            members.append(member)
        if at != start:
            raise unsafe(f"{start - at} bytes stand between the last member and the directory")
    total = sum(m.size for m in members)
    if total > limits.expanded(size):
        raise InputRefused("limit-expand", f"the archive of {size} bytes expands to {total}; at most {limits.expanded(size)} are taken")
    return members


def _end_record(f: BinaryIO, size: int, entries: int) -> tuple[int, int, int]:
    """The number of members, and where the central directory starts and ends."""
    tail_size = min(size, _END.size + _FULL16)
    f.seek(size - tail_size)
    tail = f.read(tail_size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise invalid("it has no end record: not a zip, or a truncated one")
    _, disk, disk2, here, count, length, start, comment = _END.unpack_from(tail, at)
    if len(tail) - at - _END.size != comment:
        raise unsafe("bytes follow the end record")
    earlier = at
    while (earlier := tail.rfind(b"PK\x05\x06", 0, earlier)) >= 0:
        if len(tail) - earlier - _END.size == int.from_bytes(tail[earlier + 20 : earlier + 22], "little"):
            raise unsafe("it has two end records, and readers disagree on which one counts")
    end = size - tail_size + at
    if at >= _LOCATOR.size and tail[at - _LOCATOR.size : at - _LOCATOR.size + 4] == b"PK\x06\x07":
        _, _, where, disks = _LOCATOR.unpack_from(tail, at - _LOCATOR.size)
        if where != end - _LOCATOR.size - _END64.size or where < 0 or disks > 1:
            raise unsafe("its zip64 end record is not where it must be")
        f.seek(where)
        signature, rest, _, _, d1, d2, here64, count64, length64, start64 = _END64.unpack(f.read(_END64.size))
        if signature != b"PK\x06\x06" or rest != _END64.size - 12 or d1 or d2 or here64 != count64:
            raise unsafe("its zip64 end record is malformed")
        for short, long, full in ((count, count64, _FULL16), (length, length64, _FULL32), (start, start64, _FULL32)):
            if short not in (long, full):
                raise unsafe("its two end records differ")
        here, count, length, start, end = count64, count64, length64, start64, where
    if disk or disk2 or here != count:
        raise unsafe("it is one of several disks")
    if count == 0:
        raise invalid("it has no members")
    if count > entries:
        raise InputRefused("limit-entries", f"the archive has {count} members; at most {entries} are taken")
    if start + length != end:
        raise unsafe("its directory does not end where the end record starts: bytes stand before or inside the archive")
    if length > count * 4096:
        raise unsafe(f"its directory takes {length} bytes for {count} members")
    return count, start, end


def _central(directory: bytes, count: int, limits: Limits) -> list[tuple[Member, int, int]]:
    """`(member, flags, offset of its local header)` of each entry; `Member.offset` is not yet known."""
    found, at = [], 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory) or directory[at : at + 4] != b"PK\x01\x02":
            raise invalid("its directory is shorter than its end record says")
        _, _, _, flags, method, _, _, crc, csize, size, n_name, n_extra, n_comment, disk, _, attributes, offset = _CENTRAL.unpack_from(directory, at)
        at += _CENTRAL.size
        raw, extra = directory[at : at + n_name], directory[at + n_name : at + n_name + n_extra]
        at += n_name + n_extra + n_comment
        name = _decode(raw)
        if flags & ~_FLAGS:
            raise unsafe(f"member {shown(name)} is encrypted, or needs a feature that is not read (flags {flags:#06x})")
        if method not in (STORED, DEFLATED):
            raise unsafe(f"member {shown(name)} has compression method {method}; taken are stored and deflated")
        if (kind := stat.S_IFMT(attributes >> 16)) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise unsafe(f"member {shown(name)} is a link or a device, not a file")
        if (kind == stat.S_IFDIR or attributes & 0x10) and not name.endswith("/"):
            raise unsafe(f"member {shown(name)} is a folder in one place and a file in another")
        size, csize, offset, disk = _zip64(extra, name, size, csize, offset, disk)
        if disk:
            raise unsafe("it is one of several disks")
        if method == STORED and size != csize:
            raise unsafe(f"stored member {shown(name)} has {csize} bytes, and {size} once unpacked")
        if name.endswith("/") and size:
            raise unsafe(f"folder {shown(name)} has content")
        found.append((Member(name, 0, csize, size, method, crc), flags, offset))
    if at != len(directory):
        raise unsafe("bytes follow the last entry of its directory")
    return found


def _decode(raw: bytes) -> str:
    """Names are UTF-8, flagged or not (macOS writes them so without the flag)."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise unsafe(f"a member's name {shown(raw.decode('latin-1'))} is not UTF-8") from None


def _extra(extra: bytes, name: str) -> dict[int, bytes]:
    fields, at = {}, 0
    while at < len(extra):
        kind, length = struct.unpack_from("<HH", extra, at) if at + 4 <= len(extra) else (0, len(extra))
        if at + 4 + length > len(extra):
            raise unsafe(f"member {shown(name)} has a malformed extra field")
        if kind in fields and kind in (0x0001, 0x7075):
            raise unsafe(f"member {shown(name)} has two zip64 or name fields")
        fields[kind] = extra[at + 4 : at + 4 + length]
        at += 4 + length
    if (unicode := fields.get(0x7075)) is not None and unicode[5:] != name.encode():
        raise unsafe(f"member {shown(name)} has another name in its extra field")
    return fields


def _zip64(extra: bytes, name: str, *values: int) -> tuple[int, ...]:
    """The header's values with those at their maximum replaced, in order, from the zip64 field."""
    field, out = _extra(extra, name).get(0x0001, b""), []
    for value, full, width in zip(values, (_FULL32, _FULL32, _FULL32, _FULL16), (8, 8, 8, 4), strict=False):
        if value == full:
            if len(field) < width:
                raise unsafe(f"member {shown(name)} lacks a zip64 size")
            value, field = int.from_bytes(field[:width], "little"), field[width:]
        out.append(value)
    return tuple(out)


def _local(f: BinaryIO, member: Member, flags: int, offset: int, limit: int) -> tuple[Member, int]:
    """The member with its data's offset, and where its record ends. The local header must say what the directory says."""
    f.seek(offset)
    head = f.read(_LOCAL.size)
    if len(head) < _LOCAL.size or head[:4] != b"PK\x03\x04":
        raise unsafe(f"member {shown(member.name)} has no local header at byte {offset}")
    _, _, flags2, method, _, _, crc, csize, size, n_name, n_extra = _LOCAL.unpack(head)
    name, extra = f.read(n_name), f.read(n_extra)
    if name != member.name.encode():
        raise unsafe(f"member {shown(member.name)} is called {shown(name.decode('latin-1'))} in its local header")
    if flags2 != flags or method != member.method:
        raise unsafe(f"member {shown(member.name)} has other flags or another method in its local header")
    size, csize = _zip64(extra, member.name, size, csize)
    described = bool(flags & _DESCRIPTOR)
    for value, expected in ((crc, member.crc), (csize, member.csize), (size, member.size)):
        if value != expected and not (described and value == 0):
            raise unsafe(f"member {shown(member.name)} has another size or checksum in its local header")
    start = offset + _LOCAL.size + n_name + n_extra
    end = start + member.csize
    if described and end <= limit:
        end += _descriptor(f, member, end, limit)
    if end > limit:
        raise unsafe(f"member {shown(member.name)} reaches past the end of its archive")
    return Member(member.name, start, member.csize, member.size, member.method, member.crc), end


def _descriptor(f: BinaryIO, member: Member, at: int, limit: int) -> int:
    """Bytes of the data descriptor after a member: checksum and sizes again, with or without a signature, of 4 or 8 bytes each."""
    f.seek(at)
    data = f.read(min(24, limit - at))
    forms = []
    for width in "QI":  # the longer forms first: a shorter one may be the start of a longer one
        if width == "Q" or max(member.csize, member.size) <= _FULL32:
            body = struct.pack(f"<I2{width}", member.crc, member.csize, member.size)
            forms += [b"PK\x07\x08" + body, body]
    for form in sorted(forms, key=len, reverse=True):
        if data.startswith(form) and (len(data) == len(form) or data[len(form) : len(form) + 2] == b"PK"):
            return len(form)
    raise unsafe(f"member {shown(member.name)} is followed by something that is not its data descriptor")
