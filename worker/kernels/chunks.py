"""One chunk of a payload: up to 2^20 values, coded on their own.

    0   u8   codec       0 raw, 1 constant, 2 zstd, 3 rans, 4 mask, 5 contexts, 6 scaled
    1   u8   planes      records in the plane table; 0 where there is none
    2   u16  0
    4   u32  escapes     bytes of a plane coded as pairs or alias, or exponents of scaled values, that have no symbol of their own; 0 where there are none
    8   u32  crc32       of bytes 0..7 and of everything from byte 12 on
    12  ...  body

    raw       the values, little-endian; codes of b bits densely packed (see bits.py)
    constant  one value, little-endian; a code takes one byte
    zstd      plane table, then the planes: those of planes.py, or one plane that is the raw body; codes: one plane of symbols (see bits.py)
    mask      u32 kept, plane table, then the mask, the signs of the zeros, and the planes of the values kept (see masks.py)
    rans      codes only (see rans.py)
    contexts  codes only, and only where a matrix's columns are known (see contexts.py)
    scaled    floats of two or four bytes only (see scaled.py)

The plane table, and how a plane is stored, are in codings.py. All integers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from isal.isal_zlib import crc32  # zlib's, four times as fast

from worker.kernels import alias, contexts, rans, scaled
from worker.kernels.bits import from_symbols, pack_bits, packed_bytes, to_symbols, unpack_bits
from worker.kernels.codings import ALIAS, CONSTANT, CONTEXTS, GAPS, PAIRS, PLANE, RAW, ZSTD, CorruptPayload
from worker.kernels.codings import compress, expand, frame_content, read_table, squeeze, table
from worker.kernels.masks import apart, from_gaps, from_mask, kept, to_gaps, to_mask, together
from worker.kernels.planes import from_pairs, merge, split, to_pairs

RANS, MASK, SCALED = 3, 4, 6  # codecs beside RAW, CONSTANT, ZSTD and CONTEXTS
MAX_VALUES = 1 << 20
_HEAD = struct.Struct("<BBHI")
_CRC = struct.Struct("<I")
_BODY = _HEAD.size + _CRC.size

_RANS_FROM = 1 << 13  # codes that pay for the table of frequencies
_RANS_GAIN = 0.995  # what it must come to, since it decodes more slowly
_SPARSE = 0.02  # share of zeros from which a mask is worth its bits
_GAPS_FROM = 0.75  # share of zeros from which gaps may be
_PAIRS_BELOW = 0.25  # bytes per exponent below which a Huffman code loses much to whole bits


@dataclass(frozen=True)
class Layout:
    """What a value is.

    Args:
        kind: bytes | float | int | codes.
        width: bytes of a value (1 for bytes; 1, 2, 4 or 8 for floats and integers); for codes their bits, 1 to 8.
    """

    kind: str
    width: int

    @property
    def dtype(self) -> np.dtype:
        """Unsigned integers that hold a value."""
        return np.dtype(np.uint8 if self.kind == "codes" else f"<u{self.width}")

    def raw_bytes(self, count: int) -> int:
        return packed_bytes(count, self.width) if self.kind == "codes" else count * self.width


BYTES = Layout("bytes", 1)


def encode_chunk(values: np.ndarray, layout: Layout, entropy: bool = True, columns: int = 0, place: scaled.Place | None = None) -> bytes:
    """The smallest form of `values` that is found: with `entropy` any codec, else raw.

    Args:
        values: `layout.dtype` [n], 1 <= n <= MAX_VALUES; codes are below 2^width.
        columns: of the matrix that the values are, row by row, if it may be coded in contexts, which takes some microseconds a value; else 0.
        place: where floats lie in their matrix, if they may be coded about the scales of its rows and columns (level `max`).
    """
    if entropy:
        if values[0] == values[-1] and (values == values[0]).all():
            return _frame(CONSTANT, 0, 0, values[:1].tobytes())
        best = min((_frame(*form) for form in _forms(values, layout, columns, place)), key=len)
        if len(best) < layout.raw_bytes(len(values)) + _BODY:
            return best
    return _frame(RAW, 0, 0, (pack_bits(values, layout.width) if layout.kind == "codes" else values).tobytes())


def _forms(values: np.ndarray, layout: Layout, columns: int, place: scaled.Place | None) -> Iterator[tuple[int, int, int, bytes]]:
    """(codec, planes, escapes, body) of every form that is worth a trial."""
    if layout.kind == "codes":
        huffman = table([squeeze(to_symbols(values, layout.width), "huffman")])
        yield ZSTD, 1, 0, huffman
        if len(values) >= _RANS_FROM and rans.encoded_bytes(values, layout.width) < _RANS_GAIN * min(len(huffman), layout.raw_bytes(len(values))):
            yield RANS, 0, 0, rans.encode(values, layout.width)
        if columns:
            yield CONTEXTS, 0, 0, contexts.encode(values, columns)
    elif layout.kind == "bytes":
        yield ZSTD, 1, 0, table([squeeze(values, "huffman", "level")])
    elif layout.kind == "int":
        yield ZSTD, layout.width, 0, table([squeeze(p, "huffman", "level") for p in split(values, False)])
        if layout.width > 1:
            yield ZSTD, 1, 0, table([squeeze(values.view(np.uint8), "level")])
    else:
        if place and layout.width in (2, 4) and (form := scaled.encode(values, place)):
            yield SCALED, 0, form[1], form[0]
        planes = split(values, True)
        zeros = len(values) - np.count_nonzero(planes[0])  # the cheap look first: of floats of more than a byte there are no more
        if zeros and (layout.width == 1 or zeros >= _SPARSE * len(values)):
            bits, others, negative = apart(values)
            zeros = len(negative)
        if zeros >= _SPARSE * len(values):
            parts, escapes = _float_parts(split(others, True))
            mask = squeeze(bits, "huffman", "level")
            keep = kept(bits, len(values)) if zeros >= _GAPS_FROM * len(values) or columns else None
            if zeros >= _GAPS_FROM * len(values):
                mask = min(mask, (GAPS, compress("huffman", to_gaps(keep))), key=lambda form: len(form[1]))
            if columns and zeros < len(values):
                mask = min(mask, (CONTEXTS, contexts.encode(keep.view(np.uint8), columns)), key=lambda form: len(form[1]))
            signs = squeeze(to_mask(negative), "huffman")
            yield MASK, 2 + layout.width, escapes, _CRC.pack(len(values) - zeros) + table([mask, signs, *parts])
        if zeros < _SPARSE * len(values) or layout.width == 1:  # a zero byte has no sign to save, so its mask may lose
            parts, escapes = _float_parts(planes)
            yield ZSTD, layout.width, escapes, table(parts)


def _float_parts(planes: list[np.ndarray]) -> tuple[list[tuple[int, bytes]], int]:
    """(coding, bytes) of each plane of floats, and the escapes of the first."""
    first, escapes = _exponents(planes[0]) if len(planes) > 1 else (squeeze(planes[0], "huffman"), 0)
    return [first, *(squeeze(p, "huffman") for p in planes[1:])], escapes


def _exponents(plane: np.ndarray) -> tuple[tuple[int, bytes], int]:
    """(coding, bytes) of plane 0 of floats that have others, and its escapes."""
    if len(plane) >= alias.FROM and alias.suits(counts := alias.counted(plane)):
        stream, escapes = alias.encode(plane, counts)
        return (ALIAS, stream), escapes
    first = squeeze(plane, "huffman")
    if first[0] == ZSTD and len(first[1]) < _PAIRS_BELOW * len(plane):
        top, pairs, out = to_pairs(plane)
        frame = compress("huffman", pairs)
        if PLANE.size + len(frame) + len(out) < len(first[1]):
            return (PAIRS, PLANE.pack(top, len(frame)) + frame + out.tobytes()), len(out)
    return first, 0


def _frame(codec: int, planes: int, escapes: int, body: bytes) -> bytes:
    head = _HEAD.pack(codec, planes, 0, escapes)
    return b"".join([head, _CRC.pack(crc32(body, crc32(head))), body])


def decode_chunk(data: memoryview, layout: Layout, count: int, columns: int = 0) -> np.ndarray:
    """The inverse of `encode_chunk`: `layout.dtype` [count], maybe a view on `data`.

    Args:
        columns: as for `encode_chunk`; where it is 0 nothing may be coded in contexts.

    Raises:
        CorruptPayload: checksum, codec, a length, or a frame is wrong. Nothing larger than the chunk itself is allocated before that is known.
    """
    if len(data) < _BODY:
        raise CorruptPayload(f"a chunk of {len(data)} bytes has no room for its head")
    codec, planes, zero, escapes = _HEAD.unpack_from(data)
    body = data[_BODY:]
    if crc32(body, crc32(data[: _HEAD.size])) != _CRC.unpack_from(data, _HEAD.size)[0]:
        raise CorruptPayload("a chunk's checksum does not hold")
    if codec not in (RAW, CONSTANT, ZSTD, RANS, MASK, CONTEXTS, SCALED) or zero or (escapes and codec not in (ZSTD, MASK, SCALED)):
        raise CorruptPayload(f"codec {codec} with {escapes} escapes is none of raw (0), constant (1), zstd (2), rans (3), mask (4), contexts (5), scaled (6)")
    if codec == RAW:
        values = _raw(body, layout, count)
    elif codec == CONSTANT:
        if len(body) != layout.dtype.itemsize:
            raise CorruptPayload(f"a constant of {len(body)} bytes")
        values = np.full(count, np.frombuffer(body, layout.dtype)[0])
    elif codec == ZSTD:
        values = _planes(body, planes, escapes, layout, count)
    elif codec in (RANS, CONTEXTS):
        if layout.kind != "codes":
            raise CorruptPayload(f"codec {codec} for {layout}, which are no codes")
        values = _by_frequency(body, layout, count) if codec == RANS else _in_contexts(body, count, columns)
    elif codec == SCALED:
        if layout.kind != "float" or layout.width not in (2, 4):
            raise CorruptPayload(f"scaled floats for {layout}")
        values = scaled.decode(body, layout.width, count, escapes)
    else:
        values = _masked(body, planes, escapes, layout, count, columns)
    if layout.kind == "codes" and layout.width < 8 and int(values.max()) >> layout.width:
        raise CorruptPayload(f"a code exceeds {layout.width} bits")
    return values


def _raw(body, layout: Layout, count: int) -> np.ndarray:
    if len(body) != layout.raw_bytes(count):
        raise CorruptPayload(f"{len(body)} bytes for {count} raw values")
    if layout.kind == "codes":
        return unpack_bits(np.frombuffer(body, np.uint8), layout.width, count)
    return np.frombuffer(body, layout.dtype)


def _by_frequency(body, layout: Layout, count: int) -> np.ndarray:
    try:
        return rans.decode(body, count, layout.width)
    except ValueError as e:
        raise CorruptPayload(str(e)) from None


def _in_contexts(body, count: int, columns: int) -> np.ndarray:
    if not columns:
        raise CorruptPayload("values are coded in contexts where none belong")
    try:
        return contexts.decode(body, count, columns)
    except ValueError as e:
        raise CorruptPayload(str(e)) from None


def _planes(body, planes: int, escapes: int, layout: Layout, count: int) -> np.ndarray:
    if layout.kind == "float" and planes == layout.width:
        return _merged(read_table(body, planes), layout, count, escapes)
    if layout.kind == "int" and planes == layout.width > 1:
        return _merged(read_table(body, planes), layout, count, escapes)
    if planes != 1:
        raise CorruptPayload(f"{planes} planes for {layout}")
    size = -(-count // (8 // layout.width)) if layout.kind == "codes" else count * layout.width
    plane = expand(*read_table(body, 1)[0], size)
    if escapes:
        raise CorruptPayload(f"{escapes} escapes that no plane uses")
    return from_symbols(plane, layout.width, count) if layout.kind == "codes" else plane.view(layout.dtype)


def _masked(body, planes: int, escapes: int, layout: Layout, count: int, columns: int) -> np.ndarray:
    if layout.kind != "float" or planes != 2 + layout.width or len(body) < _CRC.size:
        raise CorruptPayload(f"a mask and {planes - 2} planes for {layout}")
    held = _CRC.unpack_from(body)[0]
    if held > count:
        raise CorruptPayload(f"{held} of {count} values kept")
    (coding, mask), signs, *rest = read_table(body[_CRC.size :], planes)
    values = _merged(rest, layout, held, escapes)
    try:
        if coding == GAPS:
            bits = np.zeros(count, bool)
            bits[from_gaps(frame_content(mask, held + count // 255), count)] = True
            mask = to_mask(bits)
        elif coding == CONTEXTS:
            bits = _in_contexts(mask, count, columns)
            if int(bits.max()) > 1:
                raise CorruptPayload("a mask in contexts has other codes than 0 and 1")
            mask = to_mask(bits)
        else:
            mask = expand(coding, mask, (count + 7) // 8)
        negative = from_mask(expand(*signs, (count - held + 7) // 8), count - held)
        out = together(mask, values, count)
    except ValueError as e:
        raise CorruptPayload(str(e)) from None
    if len(negative):
        out[np.flatnonzero(~kept(mask, count))[negative]] = 1 << 8 * layout.width - 1
    return out


def _merged(parts: list, layout: Layout, count: int, escapes: int) -> np.ndarray:
    """Values of the planes in `parts`; all escapes belong to the first."""
    (coding, data), *rest = parts
    if coding == PAIRS and layout.kind == "float" and layout.width > 1 and len(data) >= PLANE.size:
        top, length = PLANE.unpack_from(data)
        pairs = expand(ZSTD, data[PLANE.size :][:length], (count + 1) // 2)
        try:
            first = from_pairs(top, pairs, np.frombuffer(data[PLANE.size + length :], np.uint8), count, escapes)
        except ValueError as e:
            raise CorruptPayload(str(e)) from None
    elif coding == ALIAS and layout.kind == "float" and layout.width > 1:
        try:
            first = alias.decode(data, count, escapes)
        except ValueError as e:
            raise CorruptPayload(str(e)) from None
    elif escapes:
        raise CorruptPayload(f"{escapes} escapes that no plane uses")
    else:
        first = expand(coding, data, count)
    return merge([first, *(expand(c, d, count) for c, d in rest)], layout.kind == "float").astype(layout.dtype, copy=False)


