"""The library of compiled kernels (`worker/kernels/cpp/`), found and held to what Python takes it for; the calls are in `native`."""

from __future__ import annotations

import ctypes
import importlib.util
import logging

SIZES = 24
"""Scales that a search tries per sign (`arguments.hpp`)."""
WIDTHS = 12
"""Widths of a range that a search tries (`arguments.hpp`)."""


class Rounding(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "codes", "scales")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "group")),
        *((name, ctypes.c_int32) for name in ("dtype", "scale_dtype", "search", "shift", "floating")),
        *((name, ctypes.c_float) for name in ("half_range", "low", "high")),
        ("multipliers", ctypes.c_int16 * SIZES),
        ("zeros", ctypes.c_void_p),
        ("shrinks", ctypes.c_float * SIZES),
    ]


class Uniform(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("codes", "scales", "zeros", "values")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "group", "shared")),
        *((name, ctypes.c_int32) for name in ("dtype", "bounded", "floating")),
    ]


class AliasEncode(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in ("ranks", "frequencies", "slots", "words", "states")), ("count", ctypes.c_int64)]


class AliasDecode(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("symbols", "first", "second", "last", "states", "words", "escapes", "out")),
        *((name, ctypes.c_int64) for name in ("count", "words_count", "escapes_count")),
    ]


class Extent(ctypes.Structure):
    _fields_ = [("least", ctypes.c_float), ("most", ctypes.c_float)]


class Difference(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_double) for name in ("signal", "energy", "dot", "noise")), ("zeros", ctypes.c_int64)]


class Affine(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "weights", "scales", "offsets")),
        *((name, ctypes.c_int64) for name in ("groups", "size")),
        *((name, ctypes.c_int32) for name in ("zero", "anywhere", "polish")),
        ("high", ctypes.c_float),
        ("widths", ctypes.c_float * WIDTHS),
    ]


class Refine(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "weights", "scale_codes", "offset_codes", "scale_above", "offset_above", "sizes")),
        *((name, ctypes.c_int64) for name in ("groups", "size", "each")),
        *((name, ctypes.c_int32) for name in ("zero", "rounds")),
        *((name, ctypes.c_float) for name in ("low", "high", "least", "most", "power")),
    ]


class Compensate(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("block", "errors", "codes", "upper", "scales", "zeros", "kept")),
        *((name, ctypes.c_int64) for name in ("rows", "stride", "upper_stride", "first", "last", "width")),
        *((name, ctypes.c_float) for name in ("low", "high")),
    ]


_STRUCTS = (Rounding, Uniform, AliasEncode, AliasDecode, Extent, Difference, Affine, Refine, Compensate)
_POINTER, _COUNT, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_CALLS = {
    "sizes": [_POINTER],
    "use": [_INT],
    "quantize": [ctypes.POINTER(Rounding), _INT],
    "affine": [ctypes.POINTER(Affine), _INT],
    "refine": [ctypes.POINTER(Refine), _INT],
    "compensate": [ctypes.POINTER(Compensate), _INT],
    "dequantize": [ctypes.POINTER(Uniform), _INT],
    "compare": [_POINTER, _POINTER, _INT, _COUNT, _INT, ctypes.POINTER(Difference)],
    "extents": [_POINTER, _INT, _COUNT, _COUNT, _COUNT, _INT, ctypes.POINTER(Extent)],
    "masked": [_POINTER, _POINTER, _INT, _COUNT, _POINTER, _INT],
    "finite": [_POINTER, _INT, _COUNT, _INT],
    "lowest_per_row": [_POINTER, _INT, _COUNT, _COUNT, _COUNT, _POINTER, _INT],
    "histogram": [_POINTER, _INT, _COUNT, _INT, ctypes.c_uint64, _POINTER, _INT],
    "lowest": [_POINTER, _INT, _COUNT, ctypes.c_uint64, _COUNT, _POINTER, _INT],
    "bytes": [_POINTER, _COUNT, _POINTER],
    "ranks": [_POINTER, _COUNT, _POINTER, _POINTER, _POINTER, _COUNT],
    "slots": [_POINTER, _POINTER, _POINTER, _POINTER, _POINTER],
    "compact": [_POINTER, _INT, _COUNT, _POINTER, _POINTER, ctypes.POINTER(_COUNT)],
    "spread": [_POINTER, _POINTER, _INT, _COUNT, _COUNT, _POINTER],
    "alias_encode": [ctypes.POINTER(AliasEncode)],
    "alias_decode": [ctypes.POINTER(AliasDecode)],
    "split": [_POINTER, _INT, _COUNT, _POINTER],
    "merge": [_POINTER, _INT, _COUNT, _POINTER],
    "contexts_encode": [_POINTER, _COUNT, _COUNT, _INT, _INT, _COUNT, _POINTER, _POINTER, _POINTER, _COUNT],
    "contexts_decode": [_POINTER, _COUNT, _COUNT, _COUNT, _INT, _INT, _COUNT, _POINTER, _POINTER, _POINTER],
    "fields": [_POINTER, _INT, _COUNT, _INT, _INT, _INT, *[_POINTER] * 5],
    "unfields": [*[_POINTER] * 5, _COUNT, _INT, _COUNT, _INT, _INT, _INT, _POINTER],
    "sums": [_POINTER, _COUNT, _COUNT, _COUNT, _POINTER, _POINTER],
    "spread_scales": [_POINTER, _POINTER, _COUNT, _COUNT, _COUNT, _POINTER],
    "turns_count": [_POINTER, _POINTER, _COUNT, _POINTER],
    "turns_encode": [_POINTER, _POINTER, _COUNT, _POINTER, _POINTER, _POINTER],
    "turns_decode": [_POINTER, _COUNT, _POINTER, _POINTER, _COUNT, _POINTER, _POINTER],
    "pack": [_POINTER, _COUNT, _INT, ctypes.c_uint8, _POINTER, _INT],
    "unpack": [_POINTER, _COUNT, _INT, ctypes.c_uint8, _POINTER, _INT],
}
_LONG = ("lowest", "alias_encode", "contexts_encode", "ranks", "compact", "fields", "turns_encode")  # what returns a count


def loaded() -> ctypes.CDLL | None:
    """None where it was not built, or from other sources than these (a version that was pulled and not installed)."""
    found = importlib.util.find_spec("worker.kernels._native")
    try:
        library = ctypes.CDLL(found.origin) if found else None
        if library is not None and _fits(library):
            return library
        why = "were built from other sources" if library else "were not built (no C++ compiler?)"
    except OSError as e:
        why = f"cannot be loaded ({e})"
    logging.getLogger(__name__).warning("native kernels %s: the references run, some ten times as slow; `make install` builds them", why)
    return None


def _fits(library: ctypes.CDLL) -> bool:
    if not all(hasattr(library, f"modelpress_{name}") for name in _CALLS):
        return False
    for name, arguments in _CALLS.items():
        getattr(library, f"modelpress_{name}").argtypes = arguments
    for name in _LONG:
        getattr(library, f"modelpress_{name}").restype = _COUNT
    sizes = (_COUNT * len(_STRUCTS))()
    library.modelpress_sizes(sizes)
    return list(sizes) == [ctypes.sizeof(s) for s in _STRUCTS]


LIBRARY = loaded()
"""At once: a jailed child can open no library any more."""
