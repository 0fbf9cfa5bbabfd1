"""The safetensors file that holds the payloads, written from front to back with its header reserved up front.

    0        8              8 + n
    ├────────┼──────────────┼─────────┬─────────┬─────┬────────┐
    │ n: u64 │ header, ' '* │ payload │ payload │ ... │ index  │
    └────────┴──────────────┴─────────┴─────────┴─────┴────────┘

A large file keeps the spaces of the reservation (at most 100 bytes a payload); a small one is moved together.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from app.limits import Limits
from app.safetensors_header import PACKED
from worker.formats.packed_entries import Index
from worker.formats.packed_text import SHORT, to_frame
from worker.kernels.chunks import BYTES, Layout
from worker.kernels.payload import chunks, write_payload

VERSION = "1"
INDEX, REST, BUNDLE = "modelpress.index", "modelpress.rest", "modelpress.bundle"
_SMALL = 8 << 20  # bytes of payloads that are moved to close the gap behind the header
_ENTRY = 100  # `:{"dtype":"U8","shape":[n],"data_offsets":[a,b]},` with numbers of 16 digits


def threads() -> int:
    """More than 8 threads wait for memory."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


class Container:
    """A packed file being written.

    Args:
        path: of the file.
        names: of the payloads to come, at least as many as will be added: they decide how much is reserved for the header.
    """

    def __init__(self, path: Path, names: Iterable[str]):
        self.reserved = _aligned(1000 + sum(len(_json(n)) + _ENTRY for n in names))
        self.file = path.open("w+b")
        self.file.seek(8 + self.reserved)
        self.pool = ThreadPoolExecutor(threads(), "packed")
        self.sizes: dict[str, int] = {}
        self.twins: Counter[str] = Counter()
        self.restored = self.stored = 0
        self.limits = Limits()

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.file.close()

    def free_name(self, name: str) -> str:
        """`name`, or one like it that no payload has."""
        free = name
        while free in self.sizes or free in (INDEX, REST, BUNDLE):
            self.twins[name] += 1
            free = f"{name}~{self.twins[name]}"
        return free

    def add(self, name: str, values: Iterable[np.ndarray], count: int, layout: Layout, *, entropy: bool = True, scaled: int = 0, weight: float = 0) -> int:
        """Append a payload; several calls in a row with one name make it of several sections.

        Args:
            values, count, layout, entropy, scaled: see `write_payload`.
            weight: bytes of the restored files that a value stands for; 0 where it stands for none.

        Returns:
            bytes stored.
        """
        stored = write_payload(self.file, values, count, layout, self.pool, entropy, scaled, self.admit(layout, weight))
        self.sizes[name] = self.sizes.get(name, 0) + stored
        return stored

    def append(self, name: str, data: bytes) -> None:
        """Append bytes as they are, as the payload `name`."""
        self.file.write(data)
        self.sizes[name] = len(data)

    def admit(self, layout: Layout, weight: float) -> Callable[[int, int], bool]:
        """Readers refuse a file that claims to restore to more than a hundredfold of itself, so what shrinks further is stored raw."""

        def admit(values: int, stored: int) -> bool:
            self.restored += int(values * weight)
            self.stored += stored
            if self.restored <= self.limits.expanded(self.stored):
                return True
            self.stored += layout.raw_bytes(values) - stored
            return False

        return admit

    def finish(self, index: Index) -> None:
        """Append the index, write the header, close the gap behind it where that is cheap."""
        text = index.model_dump_json(exclude_defaults=True).encode()
        if len(text) <= SHORT:
            self.append(INDEX, to_frame(text))
        else:
            self.add(INDEX, chunks(np.frombuffer(text, np.uint8), BYTES), len(text), BYTES)
        total = sum(self.sizes.values())
        header = self._header()
        if total <= _SMALL:
            self.file.seek(8 + self.reserved)
            data = self.file.read()
            self.reserved = _aligned(len(header))
            self.file.seek(8 + self.reserved)
            self.file.write(data)
            self.file.truncate()
        self.file.seek(0)
        self.file.write(self.reserved.to_bytes(8, "little") + header.ljust(self.reserved))
        self.file.flush()

    def _header(self) -> bytes:
        header: dict = {"__metadata__": {"format": PACKED, "version": VERSION, "index": INDEX}}
        at = 0
        for name, size in self.sizes.items():
            header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at := at + size]}
        text = _json(header)
        if len(text) > self.reserved:
            raise AssertionError(f"a header of {len(text)} bytes, {self.reserved} reserved")
        return text


def _json(value) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _aligned(n: int) -> int:
    return n + -n % 8
