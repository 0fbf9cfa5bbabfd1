"""Calls of the compiled kernels, where they were built: by ctypes, which lets go of the GIL.

Every function has its reference in torch or numpy beside it (`uniform`, `scale_search`, `affine`, `two_level`, `select`, `bits`, `planes`, `alias`, `contexts`, `report` for sums) and gives the same bytes on every
instruction set; of `compare`, float64 sums for a report, the last bits may differ. Where `available()` is False, references run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from worker.kernels.library import SIZES, WIDTHS, Affine, AliasDecode, AliasEncode, Difference, Extent, Refine, Rounding, Uniform
from worker.kernels.library import LIBRARY as _LIBRARY

if TYPE_CHECKING:
    from worker.kernels.alias import Tables
    from worker.kernels.uniform import Levels

_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
LEVELS = ("baseline", "avx2", "avx512")


def available() -> bool:
    return _LIBRARY is not None


def use(level: int) -> int:
    """Choose the instruction set: 0, 1, 2 as in LEVELS, no more than the processor has; -1 changes nothing. Returns what is in use."""
    return _LIBRARY.modelpress_use(level)


def takes(*tensors: torch.Tensor, also: tuple[torch.dtype, ...] = ()) -> bool:
    """Whether these can be handed over: built, on the CPU, float32, float16 or bfloat16 (or what a function takes beside these)."""
    return all(t.device.type == "cpu" and t.dtype in (*FLOATS, *also) for t in tensors) and available()


def decodes(codes: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether `dequantize` takes these codes to that dtype."""
    return codes.device.type == "cpu" and codes.dtype in (torch.int8, torch.float8_e4m3fn) and dtype in FLOATS and available()


def quantize(matrix: torch.Tensor, levels: Levels, group_size: int, search: tuple[tuple[int, ...], int] | None, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric codes of a finite [R, C] (see `uniform` and, with `search`, its `multipliers`, `scale_search`).

    Returns:
        int8 or float8_e4m3fn [R, C], and scales float32 [R, ceil(C / group_size)] as they are read back.
    """
    multipliers, shift = search or ((0,) * SIZES, 1)
    codes, scales, _ = _rounded(matrix, levels, group_size, scale_dtype, search is not None, multipliers, shift, (0.0,) * SIZES, False)
    return codes.view(torch.float8_e4m3fn) if levels.floating else codes, scales


def quantize_asymmetric(matrix: torch.Tensor, levels: Levels, group_size: int, shrinks: Sequence[float] | None, scale_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes under zero points (see `uniform.asymmetric` and, with `shrinks` of the range to be tried, `scale_search.search_asymmetric`): int8, scales as in `quantize`, zero points like them."""
    return _rounded(matrix, levels, group_size, scale_dtype, shrinks is not None, (0,) * SIZES, 1, shrinks or (0.0,) * SIZES, True)


def _rounded(
    matrix: torch.Tensor, levels: Levels, group_size: int, scale_dtype: torch.dtype, search: bool, multipliers: Sequence[int], shift: int, shrinks: Sequence[float], asymmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    matrix = matrix.contiguous()
    rows, columns = matrix.shape
    codes, scales = torch.empty(rows, columns, dtype=torch.int8, device="cpu"), torch.empty(rows, -(-columns // group_size), device="cpu")
    zeros = torch.empty_like(scales) if asymmetric else None
    call = Rounding(
        matrix.data_ptr(), codes.data_ptr(), scales.data_ptr(), rows, columns, min(group_size, max(1, columns)), _DTYPES[matrix.dtype], _DTYPES[scale_dtype],
        search, shift, levels.floating, levels.half_range, levels.low, levels.high, (ctypes.c_int16 * SIZES)(*multipliers),
        None if zeros is None else zeros.data_ptr(), (ctypes.c_float * SIZES)(*shrinks),
    )  # fmt: skip
    _check(_LIBRARY.modelpress_quantize(call, torch.get_num_threads()))
    return codes, scales, zeros


def affine_search(x: torch.Tensor, high: float, weight: torch.Tensor | None, zero: bool, anywhere: bool, widths: Sequence[float], polish: int) -> tuple[torch.Tensor, torch.Tensor]:
    """See `affine.search`: scale and offset float32 [..., 1] of float32 [..., g]; `weight` spreads to it."""
    x = x.contiguous()
    weight = None if weight is None else weight.expand(x.shape).float().contiguous()
    scale, offset = (torch.empty(*x.shape[:-1], 1, device="cpu") for _ in range(2))
    weights = None if weight is None else weight.data_ptr()
    call = Affine(x.data_ptr(), weights, scale.data_ptr(), offset.data_ptr(), scale.numel(), x.shape[-1], zero, anywhere, polish, high, (ctypes.c_float * WIDTHS)(*widths))
    _check(_LIBRARY.modelpress_affine(call, torch.get_num_threads()))
    return scale, offset


def affine_refine(
    x: torch.Tensor, size: torch.Tensor, scale: tuple[torch.Tensor, torch.Tensor], offset: tuple[torch.Tensor, torch.Tensor] | None, exponent: int, levels: tuple[float, float], bounds: tuple[float, float],
    weight: torch.Tensor | None, zero: bool, rounds: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """See `two_level.refined`: the codes [N, K, 1] of scales and offsets, (codes, above) of float32 [N, K, g] in units of `size` [N, 1, 1]. `levels`: bounds of codes of values; `bounds`: of those of scales."""
    x = x.contiguous()
    weight = None if weight is None else weight.expand(x.shape).float().contiguous()
    size, above = size.contiguous(), [t.float().contiguous() for _, t in (scale, *([offset] if offset else []))]
    codes = [t.float().clone(memory_format=torch.contiguous_format) for t, _ in (scale, *([offset] if offset else []))]
    of = [None if weight is None else weight.data_ptr(), codes[0].data_ptr(), codes[1].data_ptr() if offset else None, above[0].data_ptr(), above[1].data_ptr() if offset else None, size.data_ptr()]
    call = Refine(x.data_ptr(), *of, codes[0].numel(), x.shape[-1], x.shape[-2], zero, rounds, *levels, *bounds, 2.0**exponent)
    _check(_LIBRARY.modelpress_refine(call, torch.get_num_threads()))
    return codes[0], codes[1] if offset else None


def dequantize(codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None, group_size: int, dtype: torch.dtype, bounded: bool) -> torch.Tensor:
    """`(code - zero_point) * scale` in float32, rounded once to `dtype`, `bounded` by its largest: [R, C] of int8 or float8_e4m3fn codes, and scales (zero points: int8) [S, G], each row
    of which stands for R / S rows."""
    floating, codes, scale = codes.dtype == torch.float8_e4m3fn, codes.contiguous().view(torch.int8), scale.float().contiguous()
    zero_point = None if zero_point is None else zero_point.to(torch.int8).contiguous()
    rows, columns = codes.shape
    values = torch.empty(rows, columns, dtype=dtype, device="cpu")
    if not values.numel():
        return values
    group = columns if scale.shape[1] == 1 else min(group_size, columns)
    if scale.shape[1] != -(-columns // group) or not len(scale) or rows % len(scale) or (zero_point is not None and zero_point.shape != scale.shape):
        raise ValueError(f"scales {tuple(scale.shape)} for codes {tuple(codes.shape)} in groups of {group_size}")
    zeros = None if zero_point is None else zero_point.data_ptr()
    call = Uniform(codes.data_ptr(), scale.data_ptr(), zeros, values.data_ptr(), rows, columns, group, rows // len(scale), _DTYPES[dtype], bounded, floating)
    _LIBRARY.modelpress_dequantize(call, torch.get_num_threads())
    return values


def compare(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float, float, float, int]:
    """Sums in float64 over two tensors of one shape and dtype: a^2, (a - b)^2, b^2, a b, and how many of b are 0."""
    a, b, sums = a.contiguous(), b.contiguous(), Difference()
    if a.numel() != b.numel() or a.dtype != b.dtype:
        raise ValueError(f"{a.dtype} {tuple(a.shape)} beside {b.dtype} {tuple(b.shape)}")
    _check(_LIBRARY.modelpress_compare(a.data_ptr(), b.data_ptr(), _DTYPES[a.dtype], a.numel(), torch.get_num_threads(), sums))
    return sums.signal, sums.noise, sums.energy, sums.dot, sums.zeros


def extents(matrix: torch.Tensor, group_size: int) -> tuple[float, float]:
    """Of the largest magnitudes of the groups of a finite [R, C] the least that is not 0 (else infinite), and the most."""
    matrix, found = matrix.contiguous(), Extent()
    rows, columns = matrix.shape
    _LIBRARY.modelpress_extents(matrix.data_ptr(), _DTYPES[matrix.dtype], rows, columns, min(group_size, max(1, columns)), torch.get_num_threads(), found)
    return found.least, found.most


def masked(values: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """`values` where bool `kept`, of the same shape, else 0."""
    values, kept = values.contiguous(), kept.contiguous()
    if kept.shape != values.shape or kept.dtype != torch.bool:
        raise ValueError(f"a mask {kept.dtype} {tuple(kept.shape)} for {tuple(values.shape)}")
    out = torch.empty_like(values)
    _LIBRARY.modelpress_masked(values.data_ptr(), kept.data_ptr(), _DTYPES[values.dtype], values.numel(), out.data_ptr(), torch.get_num_threads())
    return out


def finite(values: torch.Tensor) -> bool:
    values = values.contiguous()
    return bool(_LIBRARY.modelpress_finite(values.data_ptr(), _DTYPES[values.dtype], values.numel(), torch.get_num_threads()))


def lowest_per_row(scores: torch.Tensor, k: int) -> torch.Tensor:
    """See `select.lowest_per_row`; 0 < k < C; float64, too."""
    scores, out = scores.contiguous(), torch.empty(scores.shape, dtype=torch.bool, device="cpu")
    rows, columns = scores.shape
    if scores.dtype not in _DTYPES or not 0 < k < columns:
        raise ValueError(f"the {k} lowest of {columns}")
    _check(_LIBRARY.modelpress_lowest_per_row(scores.data_ptr(), scores.element_size(), rows, columns, k, out.data_ptr(), torch.get_num_threads()))
    return out


def histogram(scores: torch.Tensor, shift: int, prefix: int, counts: torch.Tensor) -> None:
    """Add to `counts`, int64 [2^16], the digits from bit `shift` on of the keys that have `prefix` above these (see `select`)."""
    scores = scores.contiguous()
    if counts.shape != (1 << 16,) or counts.dtype != torch.int64 or not counts.is_contiguous():
        raise ValueError(f"counts are {counts.dtype} {tuple(counts.shape)}")
    _check(_LIBRARY.modelpress_histogram(scores.data_ptr(), _DTYPES[scores.dtype], scores.numel(), shift, prefix, counts.data_ptr(), torch.get_num_threads()))


def lowest(scores: torch.Tensor, key: int, ties: int) -> tuple[torch.Tensor, int]:
    """See `select.lowest`: bool, shaped like the scores; and how many equal `key`."""
    scores, out = scores.contiguous(), torch.empty(scores.shape, dtype=torch.bool, device="cpu")
    equal = _LIBRARY.modelpress_lowest(scores.data_ptr(), _DTYPES[scores.dtype], scores.numel(), key, ties, out.data_ptr(), torch.get_num_threads())
    _check(equal < 0)
    return out, equal


def pack(codes: np.ndarray, num_bits: int, bias: int = 0) -> np.ndarray:
    """uint8 [n] plus `bias` (mod 256), the lowest bits of it, as `bits.pack_bits` has them."""
    codes = np.ascontiguousarray(codes, np.uint8)
    out = np.empty((len(codes) * num_bits + 7) // 8, np.uint8)
    _LIBRARY.modelpress_pack(codes.ctypes.data, len(codes), num_bits, bias & 0xFF, out.ctypes.data, torch.get_num_threads())
    return out


def unpack(packed: np.ndarray, num_bits: int, count: int, bias: int = 0) -> np.ndarray:
    """The inverse of `pack`: uint8 [count]."""
    packed, out = np.ascontiguousarray(packed, np.uint8), np.empty(count, np.uint8)
    if len(packed) != (count * num_bits + 7) // 8:
        raise ValueError(f"{len(packed)} bytes for {count} codes of {num_bits} bits")
    _LIBRARY.modelpress_unpack(packed.ctypes.data, count, num_bits, bias & 0xFF, out.ctypes.data, torch.get_num_threads())
    return out


def bytes_count(plane: np.ndarray) -> np.ndarray:
    """How often each byte occurs in uint8 [n]: int64 [256]."""
    plane, out = np.ascontiguousarray(plane, np.uint8), np.empty(256, np.int64)
    _LIBRARY.modelpress_bytes(plane.ctypes.data, len(plane), out.ctypes.data)
    return out


def ranks(plane: np.ndarray, symbols: np.ndarray, escapes: int) -> tuple[np.ndarray, np.ndarray]:
    """Of uint8 [n] the places in the first fifteen of `symbols`, uint8 [16], 15 where they are not there; and those that are not there, `escapes` in number."""
    plane, symbols = np.ascontiguousarray(plane, np.uint8), np.ascontiguousarray(symbols, np.uint8)
    out, others = np.empty(len(plane), np.uint8), np.empty(escapes, np.uint8)
    found = _LIBRARY.modelpress_ranks(plane.ctypes.data, len(plane), symbols.ctypes.data, out.ctypes.data, others.ctypes.data, escapes)
    if found != escapes:
        raise ValueError(f"{found} bytes beside the common ones, counted were {escapes}")
    return out, others


def slots(tables: Tables) -> np.ndarray:
    """See `alias.Tables.slots`."""
    out, starts = np.zeros(4097, np.uint16), tables.starts.astype(np.uint32)
    if not _LIBRARY.modelpress_slots(*(a.ctypes.data for a in (tables.first, tables.second, tables.last, starts, out))):
        raise ValueError("the entries of a table do not come to 4096 slots")
    return out


def alias_encode(ranks: np.ndarray, tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """See `alias`: words uint16, and states uint32 [64], of ranks uint8 [n] below 16."""
    words, states = np.empty(len(ranks), np.uint16), np.empty(64, np.uint32)
    frequencies, slots = (tables.frequencies | tables.starts << 16).astype(np.uint32), tables.slots
    call = AliasEncode(ranks.ctypes.data, frequencies.ctypes.data, slots.ctypes.data, words.ctypes.data, states.ctypes.data, len(ranks))
    used = _LIBRARY.modelpress_alias_encode(call)
    return words[len(words) - used :], states


def alias_decode(symbols: np.ndarray, tables: Tables, states: np.ndarray, words: np.ndarray, escapes: np.ndarray, count: int) -> np.ndarray:
    """See `alias`: uint8 [count]. `words` are bytes.

    Raises:
        ValueError: words, escapes or states do not come out even.
    """
    out = np.empty(count, np.uint8)
    inputs = (symbols, tables.first, tables.second, tables.last, states, words, escapes, out)
    call = AliasDecode(*(a.ctypes.data for a in inputs), count, len(words) // 2, len(escapes))
    if wrong := _LIBRARY.modelpress_alias_decode(call):
        raise ValueError(f"the {('words', 'escapes', 'states')[wrong - 1]} of a stream do not come out even")
    return out


def contexts_encode(codes: np.ndarray, columns: int, zero: int, depth: int, lag: int, curves: tuple[np.ndarray, np.ndarray]) -> bytes:
    """See `contexts`: the bits of uint8 [n]. `curves`: of `mixing`, int16 and int32 [4096]."""
    codes = np.ascontiguousarray(codes, np.uint8)
    out = np.empty(2 * len(codes) * (depth + 1) + 16, np.uint8)  # a bit takes less than two bytes
    size = _LIBRARY.modelpress_contexts_encode(codes.ctypes.data, len(codes), columns, zero, depth, lag, *(c.ctypes.data for c in curves), out.ctypes.data, len(out))
    _check(size < 0)
    return out[:size].tobytes()


def contexts_decode(body: np.ndarray, count: int, columns: int, zero: int, depth: int, lag: int, curves: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """See `contexts`: uint8 [count].

    Raises:
        ValueError: a code is above 255.
    """
    body, out = np.ascontiguousarray(body, np.uint8), np.empty(count, np.uint8)
    wrong = _LIBRARY.modelpress_contexts_decode(body.ctypes.data, len(body), count, columns, zero, depth, lag, *(c.ctypes.data for c in curves), out.ctypes.data)
    _check(wrong == 1)
    if wrong:
        raise ValueError("a code in contexts exceeds 255")
    return out


def split(values: np.ndarray) -> list[np.ndarray]:
    """See `planes.split` of floats of 2 or 4 bytes."""
    values = np.require(values, requirements=("C", "ALIGNED"))  # C++ reads no words at odd addresses
    out = np.empty((values.itemsize, len(values)), np.uint8)
    _LIBRARY.modelpress_split(values.ctypes.data, values.itemsize, len(values), out.ctypes.data)
    return list(out)


def merge(planes: Sequence[np.ndarray]) -> np.ndarray:
    """See `planes.merge` of floats, for 2 or 4 planes."""
    planes = [np.ascontiguousarray(p, np.uint8) for p in planes]
    if len(planes) not in (2, 4) or len({len(p) for p in planes}) != 1:
        raise ValueError(f"planes of {[len(p) for p in planes]} bytes")
    out = np.empty(len(planes[0]), f"<u{len(planes)}")
    pointers = (ctypes.c_void_p * len(planes))(*(p.ctypes.data for p in planes))
    _LIBRARY.modelpress_merge(pointers, len(planes), len(out), out.ctypes.data)
    return out


def compact(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Of floats by their bits, `<u1` to `<u8` [n], those that are not zero: their mask (`masks.to_mask`), they themselves, and how many zeros are negative."""
    values = np.require(values, requirements=("C", "ALIGNED"))
    mask, out, negative = np.empty((len(values) + 7) // 8, np.uint8), np.empty_like(values), ctypes.c_int64()
    kept = _LIBRARY.modelpress_compact(values.ctypes.data, values.itemsize, len(values), mask.ctypes.data, out.ctypes.data, negative)
    return mask, out[:kept], negative.value


def spread(mask: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """The inverse, with positive zeros.

    Raises:
        ValueError: the mask has other than as many ones, or one behind the end.
    """
    mask, values, out = np.ascontiguousarray(mask, np.uint8), np.require(values, requirements=("C", "ALIGNED")), np.empty(count, values.dtype)
    if len(mask) != (count + 7) // 8 or not _LIBRARY.modelpress_spread(mask.ctypes.data, values.ctypes.data, values.itemsize, len(values), count, out.ctypes.data):
        raise ValueError(f"a mask with other than {len(values)} ones among {count}")
    return out


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for what a kernel keeps beside its output")
