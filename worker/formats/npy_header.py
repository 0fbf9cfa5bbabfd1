"""The dict literal that a .npy file begins with. What may stand in it is for its readers to say: one takes plain numbers, another records too."""

from __future__ import annotations

import ast
from typing import Any

from app.errors import InputRefused
from app.limits import shown

MAGIC = b"\x93NUMPY"
_KEYS = {"descr", "fortran_order", "shape"}


def parse_header(raw: bytes, name: str, encoding: str = "latin-1") -> tuple[Any, Any, Any]:
    """`descr`, `fortran_order` and `shape` as they stand there, unchecked.

    Args:
        encoding: latin-1; utf-8 from version 3.

    Raises:
        InputRefused: invalid-numpy.
    """
    try:
        header = ast.literal_eval(raw.decode(encoding).strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # TypeError: a list or dict for a key
        raise InputRefused("invalid-numpy", f"the header of {shown(name)} is no dict of literals") from None
    if not isinstance(header, dict) or header.keys() != _KEYS:
        raise InputRefused("invalid-numpy", f"the header of {shown(name)} must have descr, fortran_order and shape, and nothing else")
    return header["descr"], header["fortran_order"], header["shape"]
