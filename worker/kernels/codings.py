"""Planes of a chunk: a table of them, and how each is stored.

    table     per plane: u8 coding, u32 bytes; then the planes, one after another

    coding    0 raw
              1 constant  one byte
              2 zstd      a frame that declares its content size
              3 pairs     plane 0 of floats: u8 top, u32 bytes of the frame, a zstd frame of ceil(n / 2) bytes, the escapes. Nibble r of the
                          frame's content (the low one first) stands for the byte top - r, 15 for the next of the escapes
              4 gaps      a mask: a zstd frame of gap bytes (see masks.py)
              5 contexts  a mask: codes of one bit (see contexts.py)
              6 alias     plane 0 of floats of two bytes or more: see alias.py

zstandard serves as an order-0 Huffman coder (its LZ stage set so that it finds next to nothing: matches in exponents are accidents that cost more
than they save). Two exponents in a symbol halve what a Huffman code loses to whole bits, and the work. What is not a number gets an ordinary level.
"""

from __future__ import annotations

import struct
import threading

import numpy as np
import zstandard

RAW, CONSTANT, ZSTD, PAIRS, GAPS, CONTEXTS, ALIAS = range(7)
PLANE = struct.Struct("<BI")  # also the head of a plane coded as pairs

_HUFFMAN = zstandard.ZstdCompressionParameters(strategy=1, min_match=7, window_log=17, hash_log=6, chain_log=6, target_length=0)
_LEVEL = 9  # for text and integers
_SAMPLE = 8 << 10
_threads = threading.local()  # a compressor serves one thread at a time


class CorruptPayload(ValueError):
    """The bytes are not a payload, or not the payload of what was asked for."""


def _zstd(name: str):
    if not hasattr(_threads, "huffman"):
        _threads.huffman = zstandard.ZstdCompressor(compression_params=_HUFFMAN)
        _threads.level = zstandard.ZstdCompressor(level=_LEVEL)
        _threads.decompressor = zstandard.ZstdDecompressor()
    return getattr(_threads, name)


def compress(coder: str, plane: np.ndarray) -> bytes:
    """A zstd frame of `plane`; `coder` is huffman or level."""
    return _zstd(coder).compress(plane)


def table(parts: list[tuple[int, bytes]]) -> bytes:
    """The plane table of (coding, bytes), and the planes."""
    return b"".join([*(PLANE.pack(coding, len(data)) for coding, data in parts), *(data for _, data in parts)])


def squeeze(plane: np.ndarray, *coders: str) -> tuple[int, bytes]:
    """(coding, bytes) of one plane. A sample of a large one chooses the coder, or none where it does not shrink."""
    size = len(plane)
    if size > 1 and plane[0] == plane[-1] and (plane == plane[0]).all():
        return CONSTANT, plane[:1].tobytes()
    if size >= 4 * _SAMPLE:
        sample = np.concatenate([plane[i * (size // 4) :][: _SAMPLE // 4] for i in range(4)])
        size_of = {c: len(compress(c, sample)) for c in coders}
        coders = [c for c in sorted(coders, key=size_of.get)[:1] if size_of[c] < 0.98 * _SAMPLE]
    found = min((compress(c, plane) for c in coders), key=len, default=None)
    return (ZSTD, found) if found is not None and len(found) < size else (RAW, plane.tobytes())


def read_table(body, planes: int) -> list[tuple[int, memoryview]]:
    """(coding, bytes) of every plane.

    Raises:
        CorruptPayload: the planes do not fill `body`.
    """
    at = PLANE.size * planes
    if len(body) < at:
        raise CorruptPayload("the plane table is cut off")
    out = []
    for i in range(planes):
        coding, length = PLANE.unpack_from(body, i * PLANE.size)
        out.append((coding, body[at : at + length]))
        at += length
    if at != len(body):
        raise CorruptPayload(f"planes end at {at} of {len(body)} bytes")
    return out


def expand(coding: int, data: memoryview, size: int) -> np.ndarray:
    """The plane uint8 [size] that is stored as `data`, by one of the first three codings.

    Raises:
        CorruptPayload: it has another size, or is no zstd frame.
    """
    if coding == ZSTD:
        plane = frame_content(data, size)
    elif coding == RAW:
        plane = np.frombuffer(data, np.uint8)
    elif coding == CONSTANT and len(data) == 1:
        return np.full(size, data[0], np.uint8)
    else:
        raise CorruptPayload(f"coding {coding} of {len(data)} bytes is none of raw (0), constant (1), zstd (2) here")
    if len(plane) != size:
        raise CorruptPayload(f"a plane of {len(plane)} bytes where {size} belong")
    return plane


def frame_content(data: memoryview, limit: int) -> np.ndarray:
    """What a zstd frame holds; its declared size is held against `limit` before the decoder allocates it."""
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if declared > limit:
            raise CorruptPayload(f"a zstd frame declares {declared} bytes where {limit} belong")
        return np.frombuffer(_zstd("decompressor").decompress(data, allow_extra_data=False), np.uint8)
    except zstandard.ZstdError as e:
        raise CorruptPayload(f"zstd: {e}") from None
