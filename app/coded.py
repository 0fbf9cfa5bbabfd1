"""Bytes that entropy coding leaves, told from a sample: what `worker.kernels` makes of a payload, with zstandard as it is used there on some of the
planes' bytes. Of what the sample holds whole the size is exact, but for the choices between codings that a chunk makes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import zstandard

from app.bundled import codes_chunk
from app.packed_dictionary import DICTIONARY
from app.values import WIDTH, Values

_CHUNK, _PLANE = 12, 5  # heads of a chunk and of a plane
_SPARSE, _GAPS_FROM, _PAIRS_BELOW = 0.02, 0.75, 0.25  # where the coder changes its ways (worker.kernels.chunks)
_MASK = 0x7FFF
_ALIAS_FROM, _ALIAS_LOSS, _ALIAS_HEAD = 1 << 16, 1.0015, 308
_RANS_FROM, _RANS_GAIN, _RANS_LOSS = 1 << 13, 0.995, 1.002
_HUFFMAN = zstandard.ZstdCompressionParameters(strategy=1, min_match=7, window_log=17, hash_log=6, chain_log=6, target_length=0)
_SHORT = 1 << 16  # of an index
_FRAME = 80  # bytes of a frame that do not grow with what it holds: heads, a Huffman table
_BLOCK = 1 << 17  # of zstd, each with a table


def raw_payload(kind: str, width: int, count: int) -> int:
    """Bytes of a payload whose chunks are raw: exact. `width` counts bytes, of codes bits."""
    step = chunk_values(kind, width)
    whole, rest = divmod(count, step)
    each = [step] * whole + [rest] * bool(rest)
    return payload_head(len(each)) + sum(_CHUNK + (-(-n * width // 8) if kind == "codes" else n * width) for n in each)


def chunk_values(kind: str, width: int) -> int:
    """Values in a chunk: 1 MiB of numbers, or 2^20 codes."""
    return 1 << 20 if kind == "codes" else 1 << (21 - width.bit_length())


def payload_head(chunks: int) -> int:
    return 16 + 8 * (chunks + 1)


def text_bytes(body: bytes, size: int) -> float:
    """Of a text of `size` bytes that begins with `body`."""
    return plane(body, size, level=True)


def index_bytes(text: bytes) -> float:
    """Of the index of a packed file."""
    if len(text) > _SHORT:
        return payload_head(math.ceil(len(text) / (1 << 20))) + _CHUNK + _PLANE + text_bytes(text, len(text))
    words = zstandard.ZstdCompressionDict(DICTIONARY, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(level=19, dict_data=words, write_checksum=True).compress(text))


def plane(sample: bytes, size: float, level: bool = False) -> float:
    """Bytes of a plane of `size` bytes like `sample`. `level`: an ordinary level of zstandard is tried too."""
    seen = len(sample)
    if not seen or not size:
        return 0
    if sample.count(sample[:1]) == seen:
        return 1
    found = len(zstandard.ZstdCompressor(compression_params=_HUFFMAN).compress(sample))
    if level:
        found = min(found, len(zstandard.ZstdCompressor(level=9).compress(sample)))
    if seen < size:
        if found >= 0.98 * seen:
            return size
        found = max(0, found - _FRAME) / seen * size + _FRAME * math.ceil(size / _BLOCK)
    return found if found < (0.98 if size >= 1 << 15 else 1) * size else size


def float_payload(values: Values, count: int, columns: int = 0) -> float:
    """Bytes of a tensor of `count` floats that are like `values`; a zero has no bit set beside its sign. `columns`: of a matrix whose mask may
    be coded in contexts."""
    width = WIDTH[values.dtype]
    zeros = values.zeros / max(1, len(values.tops))
    chunks = math.ceil(count / chunk_values("float", width))
    fixed = payload_head(chunks) + chunks * _CHUNK
    if zeros == 1 or (len(set(values.tops)) == 1 and all(len(set(p)) == 1 for p in values.low)):
        return fixed + chunks * width
    if zeros < _SPARSE:
        body = _planes(values, values.tops, values.low, count) + chunks * width * _PLANE
    else:
        keep = [bool(t & _MASK) for t in values.tops]
        low = [bytes(b for b, k in zip(p, keep, strict=True) if k) for p in values.low]
        mask = _mask(keep, count, zeros)
        mask = min(mask, codes_chunk(keep, count, columns)) if columns else mask
        body = mask + _planes(values, [t for t in values.tops if t & _MASK], low, count * (1 - zeros))
        body += chunks * ((2 + width) * _PLANE + 5)
    return fixed + min(body, count * width)


def _planes(values: Values, tops: Sequence[int], low: Sequence[bytes], count: float) -> float:
    first = bytes(t >> 7 & 0xFF for t in tops)
    best = _by_frequency(first, count) or plane(first, count)
    if best < _PAIRS_BELOW * count:
        best = min(best, _pairs(first, count))
    best += plane(bytes(t >> 8 & 0x80 | t & 0x7F for t in tops), count)
    return best + sum(plane(p, count) for p in low) + (WIDTH[values.dtype] - 2 - len(low)) * count


def _by_frequency(exponents: bytes, count: float) -> float:
    """Where fifteen of them are common: see worker.kernels.alias. 0 where it is not used."""
    held = [n for _, n in Counter(exponents).most_common()]
    seen, rest = len(exponents), sum(held[15:])
    if count < _ALIAS_FROM or len(held) == 1 or rest * 64 > seen:
        return 0
    bits = -sum(n * math.log2(n / seen) for n in [*held[:15], *([rest] if rest else [])]) / seen
    return _ALIAS_LOSS * bits / 8 * count + rest / seen * count + _ALIAS_HEAD * math.ceil(count / chunk_values("float", 2))


def _pairs(exponents: bytes, count: float) -> float:
    """Exponents of a window of 15 two to a symbol, and those outside it."""
    held = Counter(exponents)
    top = max(range(14, 256), key=lambda t: sum(held[t - i] for i in range(15)))
    nibbles = [min(top - e & 0xFF, 15) for e in exponents] + [0]
    two = bytes(a | b << 4 for a, b in zip(nibbles[0::2], nibbles[1::2], strict=False))
    return plane(two, count / 2) + nibbles.count(15) / len(exponents) * count + _PLANE


def _mask(keep: Sequence[bool], count: int, zeros: float) -> float:
    """The smaller of a mask in bytes and, where most is zero, the gaps between what is kept."""
    whole = bytes(sum(1 << j for j in range(8) if keep[i + j]) for i in range(0, len(keep) - 7, 8))
    best = plane(whole, count / 8, level=True) if whole else count / 8
    if zeros >= _GAPS_FROM:
        gaps, run = bytearray(), 0
        for k in keep:
            if k or run == 254:
                gaps.append(run if k else 255)
            run = 0 if k or run == 254 else run + 1
        best = min(best, plane(bytes(gaps), count * len(gaps) / len(keep)))
    return best


def codes_payload(codes: Sequence[int], num_bits: int, count: int) -> float:
    """Bytes of `count` codes that are like `codes` (unsigned), entropy-coded as symbols of whole bytes."""
    per = 8 // num_bits
    symbols = bytes(sum(c << j * num_bits for j, c in enumerate(codes[i : i + per])) for i in range(0, len(codes), per))
    chunks = math.ceil(count / (1 << 20))
    body = min(plane(symbols, math.ceil(count / per)) + chunks * _PLANE, math.ceil(count * num_bits / 8))
    if count >= _RANS_FROM and codes:
        entropy = sum(n * math.log2(len(codes) / n) for n in Counter(codes).values()) / len(codes)
        precise = _RANS_LOSS * entropy * count / 8 + chunks * (2 << num_bits)
        body = precise if precise < _RANS_GAIN * body else body
    return payload_head(chunks) + chunks * _CHUNK + body
