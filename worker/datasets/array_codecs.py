"""Rows of an array as bytes and back, exactly: each codec sees the same bits in another order or as other numbers.

    raw           as they are                        planes        all first bytes, all second bytes, ...; Zstandard
    zstd          as they are; Zstandard             columns       the transpose of [n, d]; Zstandard
    pco           as numbers, one after another      pco-columns   as numbers, column after column
    delta         differences of whole numbers to the row before, as planes
"""

from __future__ import annotations

import math

import numpy as np
import zstandard

from worker.datasets import pco
from worker.datasets.refusals import damaged

CODECS = ("raw", "zstd", "planes", "columns", "pco", "pco-columns", "delta")
"""The first byte of a frame is a position in it."""
_HUFFMAN = {"strategy": 1, "min_match": 7, "window_log": 17, "hash_log": 6, "chain_log": 6, "target_length": 0}


def numbers(array: np.ndarray) -> np.ndarray | None:
    """The same bits as native numbers, [...] or [..., k]; None where there are none that numpy calculates with (text, records)."""
    dtype = array.dtype
    if dtype.kind == "c":
        array = array[..., None].view(dtype.str[0] + f"f{dtype.itemsize // 2}") if dtype.itemsize <= 16 else None
    elif dtype.kind in "mM":
        array = array.view(dtype.str[0] + "i8")
    elif dtype.kind == "b":
        array = array.view("u1")
    elif dtype.kind not in "iuf" or dtype.itemsize > 8:
        return None
    if array is None:
        return None
    return array if array.dtype.isnative else array.byteswap().view(array.dtype.newbyteorder("="))


def _back(found: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """What `numbers` was given."""
    if not dtype.isnative:
        found = found.byteswap()
    return np.frombuffer(found.tobytes(), dtype).reshape(shape)


def candidates(dtype: np.dtype, shape: tuple[int, ...]) -> tuple[str, ...]:
    """The codecs that fit, those first that are read fastest.

    Args:
        shape: of some rows.
    """
    found = ["zstd"]
    wide = len(shape) > 1 and math.prod(shape[1:]) > 1
    plain = numbers(np.empty((0,), dtype))
    if (dtype.itemsize if plain is None else plain.dtype.itemsize) > 1:
        found.append("planes")
    if wide and shape[0] > 1:
        found.append("columns")
    if plain is not None and plain.dtype in pco.DTYPES:
        found += ["pco", "pco-columns"] if wide else ["pco"]
    if plain is not None and plain.dtype.kind in "iu":
        found.append("delta")
    return tuple(found)


def encode(codec: str, rows: np.ndarray, level: int) -> bytes:
    """Args: rows: [n, ...]. level: Zstandard's."""
    rows = np.ascontiguousarray(rows)
    match codec:
        case "raw":
            return rows.tobytes()
        case "zstd":
            return _zstd(rows.tobytes(), level)
        case "planes":
            return _zstd(_planes(rows), level)
        case "columns":
            return _zstd(rows.reshape(len(rows), -1).T.tobytes(), level)
        case "pco":
            return pco.compress(numbers(rows).reshape(-1))
        case "pco-columns":
            plain = numbers(rows)
            return pco.compress(np.ascontiguousarray(plain.reshape(len(rows), -1).T).reshape(-1))
        case "delta":
            plain = numbers(rows).reshape(len(rows), -1)
            unsigned = plain.view(f"u{plain.dtype.itemsize}")
            return _zstd(_planes(np.diff(unsigned, axis=0, prepend=np.zeros_like(unsigned[:1]))), level)
    raise ValueError(codec)


def decode(codec: str, data: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """[n, ...] = `shape`.

    Raises:
        InputRefused: invalid-dataset, where `data` are not what `encode` makes of such rows.
    """
    count, nbytes = math.prod(shape), math.prod(shape) * dtype.itemsize
    width = math.prod(shape[1:])
    if codec in ("raw", "zstd", "planes", "columns"):
        plain = data if codec == "raw" else unzstd(data, nbytes)
        if len(plain) != nbytes:
            raise damaged(f"an array has {len(plain)} bytes where {nbytes} must be")
        if codec == "planes":
            return _unplanes(plain, dtype, shape)
        if codec == "columns":
            return np.ascontiguousarray(np.frombuffer(plain, dtype).reshape(width, shape[0]).T).reshape(shape)
        return np.frombuffer(plain, dtype).reshape(shape)
    example = numbers(np.empty((0,), dtype))
    if example is None or (codec != "delta" and example.dtype not in pco.DTYPES) or (codec == "delta" and example.dtype.kind not in "iu"):
        raise damaged(f"codec {codec} is not for {dtype}")
    each = dtype.itemsize // example.dtype.itemsize
    if codec == "delta":
        steps = _unplanes(unzstd(data, nbytes), np.dtype(f"u{example.dtype.itemsize}"), (shape[0], width))
        return _back(np.cumsum(steps, axis=0, dtype=steps.dtype), dtype, shape)
    found = pco.decompress(data, example.dtype, count * each)
    if codec == "pco-columns":
        found = np.ascontiguousarray(found.reshape(width * each, shape[0]).T)
    return _back(found, dtype, shape)


def _zstd(data: bytes, level: int) -> bytes:
    """The smaller of Zstandard as it is meant and as a Huffman coder, which is better where nothing repeats."""
    found = zstandard.ZstdCompressor(level=level).compress(data)
    plain = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(**_HUFFMAN)).compress(data)
    return min(found, plain, key=len)


def unzstd(data: bytes, nbytes: int) -> bytes:
    """Raises: InputRefused: invalid-dataset, where a frame does not announce `nbytes` or holds something else."""
    try:
        if zstandard.frame_content_size(data) != nbytes:
            raise damaged(f"a Zstandard frame announces {zstandard.frame_content_size(data)} bytes where {nbytes} must be")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=max(nbytes, 1), allow_extra_data=False)
    except zstandard.ZstdError as e:
        raise damaged(f"a Zstandard frame does not decode: {str(e)[:100]}") from None


def _planes(rows: np.ndarray) -> bytes:
    return rows.reshape(-1).view("u1").reshape(-1, rows.dtype.itemsize).T.tobytes()


def _unplanes(data: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.frombuffer(data, "u1").reshape(dtype.itemsize, -1).T).reshape(-1).view(dtype).reshape(shape)
