"""An array as frames of rows, each by the codec that a trial on a sample of it has chosen.

    frame:  codec: u8 (a position in CODECS) | what it makes of the rows

Whatever is written is decoded again and compared, bit for bit; rows that do not come back are kept raw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from worker.datasets import array_codecs
from worker.datasets.array_codecs import CODECS
from worker.datasets.frames import FrameWriter
from worker.datasets.npy import ArrayFile, Layout
from worker.datasets.refusals import damaged

CHUNK = 8 << 20
"""Bytes of rows that are coded at once."""
SAMPLE = 2 << 20


def rows_of_a_chunk(layout: Layout) -> int:
    return max(1, CHUNK // max(1, layout.row_bytes))


def choose(sample: np.ndarray, level: int) -> tuple[str, dict[str, int]]:
    """The codec that makes `sample` [n, ...] smallest, the first among equals, and what each of them makes of it, bytes."""
    if sample.size == 0:
        return "raw", {}
    tried = {codec: len(array_codecs.encode(codec, sample, level)) for codec in array_codecs.candidates(sample.dtype, sample.shape)}
    best = min(tried, key=lambda c: tried[c])
    return (best if tried[best] < sample.nbytes else "raw"), tried


def pack(codec: str, rows: np.ndarray, level: int) -> bytes:
    """A frame of rows [n, ...]."""
    data = array_codecs.encode(codec, rows, level)
    if len(data) >= rows.nbytes or array_codecs.decode(codec, data, rows.dtype, rows.shape).tobytes() != rows.tobytes():
        codec, data = "raw", rows.tobytes()
    return bytes([CODECS.index(codec)]) + data


def unpack(frame: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Raises: InputRefused: invalid-dataset."""
    if not frame or frame[0] >= len(CODECS):
        raise damaged("a frame is of no known codec")
    return array_codecs.decode(CODECS[frame[0]], frame[1:], dtype, shape)


def write(source: ArrayFile, out: FrameWriter, level: int, progress: Callable[[int], None]) -> dict:
    """Code an array.

    Args:
        progress: told of the bytes read, as they are.

    Returns:
        `codec`, `bytes` in the file, and `tried`: bytes of a sample by codec.
    """
    codec, tried = choose(source.some(SAMPLE), level)
    taken = 0
    for rows in source.rows(rows_of_a_chunk(source.layout)):
        taken += out.put(pack(codec, rows, level))
        progress(rows.nbytes)
    return {"codec": codec, "bytes": taken, "tried": tried}


def read(frames: Iterator[bytes], layout: Layout) -> Iterator[np.ndarray]:
    """The stored rows of an array, [n, ...] each.

    Raises:
        InputRefused: invalid-dataset.
    """
    stored, each = layout.stored, rows_of_a_chunk(layout)
    for at in range(0, stored[0], each):
        count = min(each, stored[0] - at)
        if (frame := next(frames, None)) is None:
            raise damaged("an array has fewer rows than its index says")
        yield unpack(frame, layout.dtype, (count, *stored[1:]))
