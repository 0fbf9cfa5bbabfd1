"""Reads .npy and .npz files of numbers, strictly: no pickle, no object, no size that the file does not hold.

    .npy   \x93NUMPY  major minor  header length: u16 (u32 from 2.0)  header: a dict literal, spaces, newline   data
    .npz   a zip of NAME.npy, stored or deflated

Source: numpy.lib.format. Of its headers only `descr` (a plain dtype), `fortran_order` and `shape` are taken.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from app.errors import InputRefused
from app.formats import is_pickle
from app.limits import Limits, check_tensor_name, shown
from worker.formats.archive import member_chunks
from worker.formats.npy_header import MAGIC, parse_header
from worker.formats.zip_walk import Member, walk_zip

DTYPES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
MOST_BYTES = 2 << 30
"""Of all arrays of a file together."""
_OBJECT = re.compile(r"[|<>=]?O\d*")
_HEADER, _RANK = 4096, 8


def read_npy(path: Path) -> np.ndarray:
    """Raises: InputRefused: invalid-numpy, limit-expand."""
    if path.stat().st_size > MOST_BYTES:
        raise _too_large(path.name, path.stat().st_size)
    return parse_npy(path.read_bytes(), path.name)


def read_npz(path: Path, limits: Limits = Limits()) -> dict[str, np.ndarray]:
    """The arrays by name.

    Raises:
        InputRefused: invalid-numpy; what the zip's walk raises; limit-expand before a byte is inflated.
    """
    members = [m for m in walk_zip(path, limits) if not m.is_folder]
    if (total := sum(m.size for m in members)) > MOST_BYTES:
        raise _too_large(path.name, total)
    arrays = {}
    with path.open("rb") as f:
        for member in members:
            name = member.name.removesuffix(".npy")
            if name == member.name:
                raise InputRefused("unsafe-archive", f"member {shown(member.name)} is no .npy file; an .npz holds nothing else")
            check_tensor_name(name, limits)
            arrays[name] = parse_npy(_content(f, member), member.name)
    return arrays


def _content(f, member: Member) -> bytes:
    data = bytearray()
    for chunk in member_chunks(f, member):
        data += chunk
    return bytes(data)


def parse_npy(data: bytes, name: str) -> np.ndarray:
    """An array over `data`, read-only, in row-major order and this machine's byte order.

    Raises:
        InputRefused: invalid-numpy; unsafe-pickle where readers would unpickle it.
    """
    if is_pickle(data):
        raise InputRefused("unsafe-pickle", f"{shown(name)} is a pickle, which numpy reads where it is allowed to; nothing is unpickled here")
    if data[:6] != MAGIC or len(data) < 12 or data[6] not in (1, 2, 3):
        raise _invalid(f"{shown(name)} does not begin as a .npy file does")
    width = 2 if data[6] == 1 else 4
    length, start = int.from_bytes(data[8 : 8 + width], "little"), 8 + width
    if length > _HEADER:
        raise _invalid(f"the header of {shown(name)} has {length} bytes; at most {_HEADER} are taken")
    descr, fortran, shape = _header(data[start : start + length], name)
    dtype, elements = np.dtype(descr), math.prod(shape)
    if math.prod(n or 1 for n in shape) * dtype.itemsize >= 1 << 63:  # numpy's own bound, which zeros do not help
        raise _invalid(f"{shown(name)} has the shape {list(shape)}, which no array can have")
    if len(data) - start - length != elements * dtype.itemsize:
        raise _invalid(f"{shown(name)} holds {len(data) - start - length} bytes and its shape {list(shape)} of {descr} takes {elements * dtype.itemsize}")
    array = np.frombuffer(data, dtype, elements, start + length)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(array.reshape(shape[::-1]).T) if fortran else array.reshape(shape)


def _header(raw: bytes, name: str) -> tuple[str, bool, tuple[int, ...]]:
    descr, fortran, shape = parse_header(raw, name)
    if _objects(descr):
        raise InputRefused("unsafe-pickle", f"{shown(name)} holds Python objects, which are a pickle; nothing is unpickled here")
    if not isinstance(descr, str) or descr.replace(">", "<", 1) not in DTYPES:
        raise _invalid(f"{shown(name)} has dtype {shown(str(descr))}; taken are {', '.join(DTYPES)} , in either byte order")
    if type(fortran) is not bool or type(shape) is not tuple or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape) or len(shape) > _RANK:
        raise _invalid(f"the header of {shown(name)} has a shape that is no tuple of at most {_RANK} sizes")
    return descr, fortran, shape


def _objects(descr: object) -> bool:
    """Whether a dtype, maybe of fields, has one of objects. It has been parsed from 4096 bytes at most."""
    if isinstance(descr, str):
        return bool(_OBJECT.fullmatch(descr))
    return isinstance(descr, (list, tuple)) and any(_objects(part) for part in descr)


def _invalid(detail: str) -> InputRefused:
    return InputRefused("invalid-numpy", detail)


def _too_large(name: str, size: int) -> InputRefused:
    return InputRefused("limit-expand", f"{shown(name)} holds {size} bytes of arrays; at most {MOST_BYTES} are taken")
