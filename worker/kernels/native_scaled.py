"""Calls of the compiled kernels of `scaled` and `turns`, which are the references beside them; as `native`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from worker.kernels.library import LIBRARY as _LIBRARY

if TYPE_CHECKING:
    from worker.kernels.scaled import Fields


def fields(values: np.ndarray, low: int, top: int, depth: int) -> tuple[np.ndarray, ...]:
    """See `scaled.split`: ranks, leads, rests, bytes below, escapes."""
    values = np.require(values, requirements=("C", "ALIGNED"))
    n = len(values)
    ranks, leads, rests, escapes = (np.empty(n + extra, np.uint8) for extra in (0, 0, 0, 1))
    below = np.empty((values.itemsize - 2, n), np.uint8)
    held = _LIBRARY.modelpress_fields(values.ctypes.data, values.itemsize, n, low, top, depth, *_at(ranks, leads, rests, below, escapes))
    return ranks, leads, rests, below, escapes[:held]


def unfields(parts: Fields, low: int, top: int, depth: int) -> np.ndarray:
    """See `scaled.merge`."""
    width, n = len(parts.below) + 2, len(parts.ranks)
    parts = [np.ascontiguousarray(p, np.uint8) for p in parts]
    if any(p.shape[-1] != n for p in parts[:4]):
        raise ValueError(f"fields of {[p.shape for p in parts]}")
    out = np.empty(n, f"<u{width}")
    if not _LIBRARY.modelpress_unfields(*_at(*parts), len(parts[4]), width, n, low, top, depth, out.ctypes.data):
        raise ValueError(f"other than {len(parts[4])} escapes")
    return out


def sums(values: np.ndarray, rows: int, columns: int, phase: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [rows] and [columns]: sums of uint8 [n] that lie row by row from column `phase` on."""
    by_row, by_column = np.zeros(rows, np.int64), np.empty(columns, np.int64)
    _LIBRARY.modelpress_sums(values.ctypes.data, len(values), columns, phase, *_at(by_row, by_column))
    return by_row, by_column


def spread_scales(rows: np.ndarray, columns: np.ndarray, phase: int, count: int) -> np.ndarray:
    """See `scaled.spread`."""
    rows, columns, out = np.ascontiguousarray(rows, np.int8), np.ascontiguousarray(columns, np.int8), np.empty(count, np.uint8)
    if len(rows) * len(columns) < phase + count:
        raise ValueError(f"scales of {len(rows)} rows and {len(columns)} columns for {count} values")
    _LIBRARY.modelpress_spread_scales(*_at(rows, columns), len(columns), phase, count, out.ctypes.data)
    return out


def turns_count(symbols: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """See `turns.counted`."""
    out = np.empty((16, 16), np.int64)
    _LIBRARY.modelpress_turns_count(*_at(symbols, contexts), len(symbols), out.ctypes.data)
    return out


def turns_encode(symbols: np.ndarray, contexts: np.ndarray, frequency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Words uint16, and states uint32 [32]."""
    words, states, table = np.empty(len(symbols), np.uint16), np.empty(32, np.uint32), _table(frequency)
    used = _LIBRARY.modelpress_turns_encode(*_at(symbols, contexts), len(symbols), *_at(table, words, states))
    return words[len(words) - used :], states


def turns_decode(words: np.ndarray, states: np.ndarray, contexts: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """uint8 [n] of as many contexts. `words` are bytes.

    Raises:
        ValueError: words, contexts or states do not come out even.
    """
    out, contexts, table = np.empty(len(contexts), np.uint8), np.ascontiguousarray(contexts, np.uint8), _table(frequency)
    wrong = _LIBRARY.modelpress_turns_decode(words.ctypes.data, len(words) // 2, *_at(states, contexts), len(contexts), *_at(table, out))
    if wrong == 4:
        raise MemoryError("no memory for what a kernel keeps beside its output")
    if wrong:
        raise ValueError(f"the {('words', 'contexts', 'states')[wrong - 1]} of a stream do not come out even")
    return out


def _table(frequency: np.ndarray) -> np.ndarray:
    below = np.cumsum(frequency, axis=1) - frequency
    return (frequency | below << 16).astype(np.uint32)


def _at(*arrays: np.ndarray) -> list[int]:
    return [a.ctypes.data for a in arrays]
