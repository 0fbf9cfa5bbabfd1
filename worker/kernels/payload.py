"""A payload: values of one layout as a table of chunks that can be decoded alone, in any order, by any number of threads.

    0    u8   kind        0 bytes, 1 float, 2 int, 3 codes
    1    u8   width       bytes of a value; bits of a code
    2    u8   chunk_log2  values in a chunk (the last has the rest): 2^chunk_log2, 8 to 20
    3    u8   0
    4    u32  chunks
    8    u64  values
    16   u64  offsets[chunks + 1], from the start of the payload; the first is the end of this table, the last the end of the payload
    ...       chunks (see chunks.py)

All integers are little-endian. Threads change the speed, never a byte.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from worker.kernels.chunks import MAX_VALUES, CorruptPayload, Layout, decode_chunk, encode_chunk
from worker.kernels.scaled import Place

KINDS = ("bytes", "float", "int", "codes")
AHEAD = 4  # chunks in work at a time; a chunk is 1 MiB, so memory stays small
_HEAD = struct.Struct("<BBBBIQ")


def chunk_log2(layout: Layout) -> int:
    """A chunk has 1 MiB of numbers, or 2^20 codes."""
    return 20 if layout.kind == "codes" else 21 - layout.width.bit_length()


def chunks(values: np.ndarray, layout: Layout) -> Iterator[np.ndarray]:
    """Views on `values` [n], a chunk each."""
    step = 1 << chunk_log2(layout)
    return (values[i : i + step] for i in range(0, len(values), step))


def ordered(pool: ThreadPoolExecutor, work: Callable, items: Iterable) -> Iterator:
    """`map(work, items)` on the pool's threads, results in order, at most AHEAD items in work."""
    waiting: deque = deque()
    for item in items:
        waiting.append(pool.submit(work, item))
        if len(waiting) == AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def write_payload(
    out: BinaryIO,
    values: Iterable[np.ndarray],
    count: int,
    layout: Layout,
    pool: ThreadPoolExecutor,
    entropy: bool = True,
    scaled: int = 0,
    admit: Callable[[int, int], bool] = lambda values, stored: True,
) -> int:
    """Append a payload to `out`.

    Args:
        out: seekable, positioned at its end.
        values: chunks of `layout.dtype`, each as long as `chunk_log2` says.
        count: values in all of them.
        entropy: compress; otherwise every chunk is raw.
        scaled: columns of the matrix that the values are, row by row, if they may be coded about the scales of rows and columns (level `max`); else 0.
        admit: (values of a chunk, bytes it would take) -> whether it may be that small; if not it is stored raw.

    Returns:
        bytes written.
    """
    log2 = chunk_log2(layout)
    number = -(-count >> log2)
    start, head = out.tell(), _HEAD.size + 8 * (number + 1)
    out.write(bytes(head))
    offsets = [head]

    def encode(numbered: tuple[int, np.ndarray]) -> tuple[np.ndarray, bytes]:
        i, part = numbered
        return part, encode_chunk(part, layout, entropy, place=Place(scaled, (i << log2) % scaled) if scaled else None)

    for part, data in ordered(pool, encode, enumerate(values)):
        if not admit(len(part), len(data)):
            data = encode_chunk(part, layout, entropy=False)
        out.write(data)
        offsets.append(offsets[-1] + len(data))
    out.seek(start)
    out.write(_HEAD.pack(KINDS.index(layout.kind), layout.width, log2, 0, number, count) + struct.pack(f"<{number + 1}Q", *offsets))
    out.seek(start + offsets[-1])
    return offsets[-1]


class Payload:
    """A payload opened for reading: `layout`, `count` (values) and, chunk by chunk, the values.

    Args:
        data: exactly the payload's bytes, maybe mapped.

    Raises:
        CorruptPayload: the head or the table is wrong. A chunk is checked when it is read.
    """

    def __init__(self, data: memoryview):
        if len(data) < _HEAD.size:
            raise CorruptPayload(f"a payload of {len(data)} bytes has no room for its head")
        kind, width, log2, zero, number, self.count = _HEAD.unpack_from(data)
        if kind >= len(KINDS) or zero or not 8 <= log2 <= MAX_VALUES.bit_length() - 1:
            raise CorruptPayload(f"kind {kind} and chunks of 2^{log2} values; known are kinds 0 to {len(KINDS) - 1} and 2^8 to 2^20")
        self.layout, self.step, self.data = Layout(KINDS[kind], width), 1 << log2, data
        if width not in {"bytes": (1,), "codes": range(1, 9)}.get(self.layout.kind, (1, 2, 4, 8)):
            raise CorruptPayload(f"{self.layout.kind} of width {width}")
        table = _HEAD.size + 8 * (number + 1)
        if number != -(-self.count >> log2) or table > len(data):
            raise CorruptPayload(f"{number} chunks for {self.count} values in {len(data)} bytes")
        self.offsets = struct.unpack_from(f"<{number + 1}Q", data, _HEAD.size)
        if self.offsets[0] != table or self.offsets[-1] != len(data) or any(a > b for a, b in pairwise(self.offsets)):
            raise CorruptPayload("the table of chunks does not fit the payload")

    def chunk(self, i: int) -> np.ndarray:
        """Chunk i: `layout.dtype` [2^chunk_log2, or the rest], maybe a view on the payload."""
        return decode_chunk(self.data[self.offsets[i] : self.offsets[i + 1]], self.layout, min(self.step, self.count - i * self.step))

    def chunks(self, pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
        """All chunks in order."""
        return ordered(pool, self.chunk, range(len(self.offsets) - 1))

    def read(self, pool: ThreadPoolExecutor) -> np.ndarray:
        """All values: a fresh `layout.dtype` [count]. The caller has held `count` against what it expects."""
        out = np.empty(self.count, self.layout.dtype)

        def place(i: int) -> None:
            out[i * self.step : (i + 1) * self.step] = self.chunk(i)

        for _ in ordered(pool, place, range(len(self.offsets) - 1)):
            pass
        return out
