"""Opens a packed file: its index checked whole, its tensors decoded one by one, each from its own mapped payload."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from app.limits import Limits, shown
from app.safetensors_header import PACKED
from worker.checkpoint import DTYPES
from worker.encoded import Factors
from worker.formats.packed_container import INDEX, VERSION, threads
from worker.formats.packed_entries import PackedCodebook, PackedGrid, PackedQuantized, PackedSegment, PackedTensor, columns_of, layout_of
from worker.formats.packed_index import parse_index, refuse
from worker.formats.packed_text import MAGIC, SHORT, from_frame
from worker.formats.safetensors_file import read_header
from worker.kernels.chunks import BYTES, CorruptPayload, Layout, decode_chunk
from worker.kernels.affine import grid_values
from worker.kernels.lookup import look_up
from worker.kernels.payload import Payload
from worker.kernels.shares import books_of
from worker.kernels.uniform import dense

_BLOCK = 1 << 20  # elements dequantized at a time


class PackedReader:
    """A packed file's tensors by name: of kind `tensors` the result's (tied names too), of kind `files` the segments.

    Raises:
        InputRefused: invalid-packed, or what the safetensors header parser raises. Payloads are checked as they are read.
    """

    reader = "modelpress packed"

    def __init__(self, path: Path, limits: Limits = Limits()):
        self.path = path
        header = read_header(path, limits)
        if header.metadata.get("format") != PACKED or header.metadata.get("version") != VERSION or header.metadata.get("index") != INDEX:
            raise refuse(f"{shown(path.name)} is not a packed file of version {VERSION}: its metadata is {shown(str(header.metadata))}")
        if any(e.dtype != "U8" or len(e.shape) != 1 for e in header.entries.values()) or INDEX not in header.entries:
            raise refuse("payloads are U8 and one of them is the index")
        self.ranges = {n: (header.data_start + e.begin, header.data_start + e.end) for n, e in header.entries.items()}
        self.pool = ThreadPoolExecutor(threads(), "packed")
        self.file = path.open("rb")
        try:
            self.index = parse_index(self._index_text(limits), self.ranges.keys() - {INDEX}, path.stat().st_size, limits)
            self.bundled = self._bundled()
        except BaseException:
            self.close()
            raise
        self.tensors: dict[str, PackedTensor | PackedSegment] = {t.name: t for t in self.index.tensors}
        for f in self.index.files if self.index.kind == "files" else ():
            self.tensors |= {s.payload: s for s in f.segments}

    def _bundled(self) -> dict[str, tuple[int, int]]:
        """Where the tensors of the bundle lie in the file, by name."""
        at, end = self.ranges.get(self.index.bundle, (0, 0))
        found = {}
        for t in self.index.tensors:
            if t.payload is None:
                found[t.name] = at, at + t.bundled
                at += t.bundled
        if at != end:
            raise refuse("the tensors of the bundle do not fill it")
        return found

    def __enter__(self) -> PackedReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.file.close()

    @property
    def names(self) -> list[str]:
        return [*self.tensors, *self.index.aliases]

    def stored_bytes(self, name: str) -> int:
        """Bytes of a tensor; 0 for a tied name."""
        if name in self.index.aliases:
            return 0
        begin, end = self._range(self.tensors[name])
        return end - begin

    def _range(self, t: PackedTensor | PackedSegment) -> tuple[int, int]:
        """Where in the file a tensor lies."""
        return self.bundled[t.name] if t.payload is None else self.ranges[t.payload]

    def read(self, name: str) -> torch.Tensor:
        """The tensor as it is restored: original dtype and shape, dequantized where it has codes."""
        t = self.tensors[self.index.aliases.get(name, name)]
        if isinstance(t, PackedSegment) or t.quantized is None:
            values = self._values(t, *layout_of(t.dtype, t.nbytes), columns_of(t.shape))
            return torch.from_numpy(values.view(np.uint8)).view(DTYPES[t.dtype]).reshape(t.shape)
        return {PackedCodebook: self._looked_up, PackedGrid: self._gridded, PackedQuantized: self._dequantized}[type(t.quantized)](t, t.quantized)

    def payload(self, name: str, layout: Layout, count: int, section: tuple[int, int] | None = None) -> Payload:
        """The payload `name`, or the bytes `section` of it, which must hold `count` values of `layout`."""
        begin, end = self.ranges[name]
        if section:
            begin, end = begin + section[0], begin + section[1]
        try:
            payload = Payload(mapped(self.file.fileno(), begin, end))
        except CorruptPayload as e:
            raise refuse(f"payload {shown(name)}: {e}") from None
        if payload.layout != layout or payload.count != count:
            raise refuse(f"payload {shown(name)} holds {payload.count} values of {payload.layout}; {count} of {layout} belong there")
        return payload

    def chunks(self, t: PackedTensor) -> Iterator[np.ndarray]:
        """The values of a tensor without codes, in order.

        Raises:
            InputRefused, CorruptPayload.
        """
        layout, count = layout_of(t.dtype, t.nbytes)
        if t.payload is None:
            yield self._values(t, layout, count, columns_of(t.shape))
        else:
            yield from self.payload(t.payload, layout, count).chunks(self.pool)

    def _values(self, t: PackedTensor | PackedSegment, layout: Layout, count: int, columns: int, section: tuple[int, int] | None = None) -> np.ndarray:
        """All values of a tensor, or of the bytes `section` of it: a fresh array. `columns`: see `decode_chunk`."""
        try:
            if t.payload is not None:
                return self.payload(t.payload, layout, count, section).read(self.pool)
            begin, end = self.bundled[t.name]
            if section:
                begin, end = begin + section[0], begin + section[1]
            if not count:
                if begin != end:
                    raise CorruptPayload(f"{end - begin} bytes for no values")
                return np.empty(0, layout.dtype)
            return np.array(decode_chunk(mapped(self.file.fileno(), begin, end), layout, count, columns))
        except CorruptPayload as e:
            raise refuse(f"tensor {shown(t.name)}: {e}") from None

    def _index_text(self, limits: Limits) -> bytes:
        begin, end = self.ranges[INDEX]
        most = 4 * limits.safetensors_header_bytes
        try:
            data = mapped(self.file.fileno(), begin, end)
            if data[:4] == MAGIC:
                return from_frame(data, min(most, SHORT))
            payload = Payload(data)
            if payload.layout != BYTES or payload.count > most:
                raise CorruptPayload(f"{payload.count} values of {payload.layout}")
            return payload.read(self.pool).tobytes()
        except CorruptPayload as e:
            raise refuse(f"the index: {e}") from None

    def _dequantized(self, t: PackedTensor, q: PackedQuantized) -> torch.Tensor:
        codes, scale, zero_point = self._codes(t, q)
        return _shaped(t, q, dense(codes, scale, zero_point, q.group_size, DTYPES[t.dtype]))

    def _gridded(self, t: PackedTensor, q: PackedGrid) -> torch.Tensor:
        spans = iter(self._spans(t))
        codes = torch.from_numpy(self._values(t, Layout("codes", q.num_bits), q.rows * q.columns, q.columns, next(spans))).reshape(q.rows, q.columns)

        def found(shape: tuple[int, int], layout: Layout) -> np.ndarray:
            return self._values(t, layout, shape[0] * shape[1], 0, next(spans))

        def floats(shape: tuple[int, int], dtype: str = q.scale_dtype) -> torch.Tensor:
            return torch.from_numpy(found(shape, layout_of(dtype, 0)[0]).view(np.uint8)).view(DTYPES[dtype]).reshape(shape)

        def factors() -> Factors:
            if q.scale_bits is None:
                return Factors(floats(q.scale_shape))
            integers = found(q.scale_shape, Layout("codes", q.scale_bits))
            if not q.offset:
                integers = (integers - np.uint8(1 << (q.scale_bits - 1))).view(np.int8)
            return Factors(torch.from_numpy(integers).reshape(q.scale_shape), floats(q.above), q.each, q.scale_bits, q.exponent)

        levels = torch.from_numpy(found((1, 1 << q.num_bits), Layout("float", 4)).view(np.float32)) if q.levels else None
        scale, offset = factors(), factors() if q.offset else None
        inputs = Factors(floats((q.experts or 1, q.columns), "F16")) if q.inputs else None

        def decoded(rows: slice) -> torch.Tensor:
            values = grid_values(codes[rows], scale.floats(rows, q.rows), offset and offset.floats(rows, q.rows), q.num_bits, q.group_size, q.zero, levels)
            return values if inputs is None else values * inputs.floats(rows, q.rows)

        return _by_rows(t, q, decoded)

    def _looked_up(self, t: PackedTensor, q: PackedCodebook) -> torch.Tensor:
        (count, size), spans = q.levels_shape, self._spans(t)
        codes = self._values(t, Layout("codes", q.num_bits), q.rows * q.columns, q.columns, spans[0])
        levels = self._values(t, layout_of(q.levels_dtype, 0)[0], count * size, 0, spans[1])
        if size < 1 << q.num_bits and len(codes) and int(codes.max()) >= size:
            raise refuse(f"a code of {shown(t.name)} stands for none of {size} levels")
        codes = torch.from_numpy(codes).reshape(q.rows, q.columns)
        levels = torch.from_numpy(levels.view(np.uint8)).view(DTYPES[q.levels_dtype]).reshape(count, size)

        def decoded(rows: slice) -> torch.Tensor:
            return look_up(codes[rows], books_of(levels, rows, q.rows), q.group_size)

        return _by_rows(t, q, decoded)

    def _spans(self, t: PackedTensor) -> list[tuple[int, int]]:
        """(begin, end) of each section of a tensor's payload."""
        ends = np.cumsum(t.quantized.sections).tolist()
        if ends[-1] != self.stored_bytes(t.name):
            raise refuse(f"the sections of {shown(t.name)} do not fill its payload")
        return list(zip([0, *ends], ends, strict=False))

    def _codes(self, t: PackedTensor, q: PackedQuantized) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """int8 or float8_e4m3fn codes [rows, columns], scale, zero point."""
        spans = self._spans(t)
        dtypes = ["F8_E4M3" if q.type == "float" else "", q.scale_dtype, "I8"]
        shapes = [(q.rows, q.columns), q.scale_shape, q.scale_shape]
        out = []
        for span, dtype, shape in zip(spans, dtypes, shapes, strict=False):
            count = shape[0] * shape[1]
            layout = layout_of(dtype, 0)[0] if dtype else Layout("codes", q.num_bits)
            values = self._values(t, layout, count, 0 if out else q.columns, span)
            if not dtype:
                values -= np.uint8(1 << (q.num_bits - 1))
            out.append(torch.from_numpy(values.view(np.uint8)).view(DTYPES[dtype or "I8"]).reshape(shape))
        return out[0], out[1], out[2] if len(out) == 3 else None


def _by_rows(t: PackedTensor, q: PackedQuantized | PackedGrid | PackedCodebook, decoded: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """The tensor whose matrix has the rows `decoded`, a block of them at a time."""
    out = torch.empty(q.rows, q.columns, dtype=DTYPES[t.dtype])
    step = max(1, _BLOCK // max(1, q.columns))
    for i in range(0, q.rows, step):
        rows = slice(i, min(q.rows, i + step))
        out[rows] = decoded(rows).to(out.dtype)
    return _shaped(t, q, out)


def _shaped(t: PackedTensor, q: PackedQuantized | PackedGrid | PackedCodebook, matrix: torch.Tensor) -> torch.Tensor:
    if q.experts is not None:
        matrix = matrix.unflatten(0, (q.experts, -1))
    return (matrix.transpose(-1, -2).contiguous() if q.transposed else matrix).reshape(t.shape)


def mapped(fd: int, begin: int, end: int) -> memoryview:
    """The bytes of a range of a file, mapped for reading; unmapped once nothing refers to them."""
    if begin == end:
        return memoryview(b"")
    start = begin - begin % mmap.ALLOCATIONGRANULARITY
    return memoryview(mmap.mmap(fd, end - start, access=mmap.ACCESS_READ, offset=start))[begin - start :]


def open_packed(path: Path, limits: Limits = Limits()) -> PackedReader:
    """Open a packed file for reading. Use it as a context manager, or close it."""
    return PackedReader(path, limits)
