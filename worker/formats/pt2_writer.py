"""Writes a program again as `.pt2`, as `torch.export.load` opens it: the program built anew, the storages as they were, new values in their places.

    Local headers are padded with an extra field `FB`, as torch's are, so that every storage starts at a multiple of 64 bytes.
"""

from __future__ import annotations

import json
import mmap
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch

from app.errors import InputRefused
from app.limits import shown
from worker.checkpoint import DTYPES, Checkpoint
from worker.encoded import Encoded
from worker.formats.pickle_tensors import SIZES, Tensor
from worker.formats.pt2_file import CONFIGS, MARKS, PROGRAM, SAMPLES, Pt2File
from worker.plan import TensorPlan

_ALIGN, _CHUNK, _LARGE = 64, 8 << 20, 1 << 31
_HEADER, _ZIP64, _CRC_AT = 30, 20, 14  # bytes of a local header, of its field for 64-bit sizes; where its checksum stands


class _Written(NamedTuple):
    info: zipfile.ZipInfo
    offset: int  # of the data


class ProgramWriter:
    """The zip at `target`: written at once, with the storages of `source`; values change until `finish`."""

    def __init__(self, source: Pt2File, target: Path):
        self.source, self.target = source, target
        target.parent.mkdir(parents=True, exist_ok=True)
        self.zip = zipfile.ZipFile(target, "x")
        self.written: dict[str, _Written] = {}
        self.changed: set[str] = set()
        for name in source.members:
            if name == PROGRAM:
                self._add(name, [json.dumps(source.program.document).encode()])
            elif name == SAMPLES:
                self._add(name, [b""])  # a reader takes it for none
            elif name in CONFIGS.values():
                folder = next(f for f, n in CONFIGS.items() if n == name)
                self._add(name, [json.dumps(source.configs[folder]).encode()])
            elif name in source.used:
                self._add(name, self._stored(name), source.members[name].size)
            elif name in MARKS:
                self._add(name, [source.small(name, 64)])
        if SAMPLES not in source.members:
            self._add(SAMPLES, [b""])
        self.zip.fp.flush()

    def _stored(self, name: str):
        record = self.source.records[name]
        with record.path.open("rb") as f:
            f.seek(record.offset)
            left = record.nbytes
            while left:
                chunk = f.read(min(left, _CHUNK))
                left -= len(chunk)
                yield chunk

    def _add(self, name: str, chunks, nbytes: int = 0) -> None:
        info = zipfile.ZipInfo(f"{self.source.root}/{name}")
        large = nbytes >= _LARGE
        start = self.zip.fp.tell() + _HEADER + len(info.filename.encode()) + _ZIP64 * large
        info.extra = struct.pack("<HH", 0x4246, pad := (-start - 4) % _ALIGN) + b"Z" * pad
        with self.zip.open(info, "w", force_zip64=large) as out:
            for chunk in chunks:
                out.write(chunk)
        self.written[name] = _Written(info, start + 4 + pad)

    def put(self, view: Tensor, values: torch.Tensor) -> None:
        """Write `values` where `view` lies in its storage."""
        size = SIZES[view.dtype]
        begin = self.written[view.storage.key].offset + view.offset * size
        nbytes = (view.last - view.offset) * size
        if not nbytes:
            return
        start = begin - begin % mmap.ALLOCATIONGRANULARITY
        with self.target.open("r+b") as f, mmap.mmap(f.fileno(), nbytes + begin - start, offset=start) as mapped:
            flat = torch.frombuffer(mapped, dtype=torch.uint8, count=nbytes, offset=begin - start).view(DTYPES[view.dtype])
            flat.as_strided(view.shape, view.stride).copy_(values)
            del flat  # the map may not be closed under it
        self.changed.add(view.storage.key)

    def size(self, name: str) -> int:
        """Bytes of a member as it was written."""
        return self.written[name].info.file_size

    def finish(self) -> None:
        """Set the checksums of what changed, and write the directory."""
        with self.target.open("r+b") as f:
            for name in sorted(self.changed):
                info, offset = self.written[name]
                f.seek(offset)
                crc, left = 0, info.file_size
                while left:
                    chunk = f.read(min(left, _CHUNK))
                    crc, left = zlib.crc32(chunk, crc), left - len(chunk)
                info.CRC = crc
                f.seek(info.header_offset + _CRC_AT)
                f.write(struct.pack("<I", crc))
        self.zip.close()


def rewrite(source: Pt2File, target: Path) -> None:
    """The same program and values, and nothing of the original that could run."""
    ProgramWriter(source, target).finish()


class Pt2Writer:
    """The input's program with the values of a result, under the input's own name.

    Raises:
        InputRefused: not-representable, where tensors that would change share bytes in a way that does not allow it.
    """

    def __init__(self, files: Path, checkpoint: Checkpoint, plans: dict[str, TensorPlan]):
        self.source: Pt2File = checkpoint.program
        _check_places(self.source, {name for name, plan in plans.items() if plan.steps})
        self.out = ProgramWriter(self.source, files / PurePosixPath(checkpoint.weight_files[0]).with_suffix(".pt2"))

    def write(self, encoded: Encoded) -> int:
        """Returns the bytes of the tensor."""
        if encoded.action != "copied":
            self.out.put(self.source.tensors[encoded.spec.name], encoded.dense)
        return encoded.spec.nbytes

    def kept(self, name: str) -> int | None:
        """Bytes of what is no tensor and is carried here: the program and its constants."""
        if name == PROGRAM:
            return self.out.size(PROGRAM)
        lifted = self.source.lifted.get(name.removeprefix("constant "))
        return lifted.nbytes if lifted else None

    def finish(self) -> None:
        self.out.finish()


def _check_places(source: Pt2File, changing: set[str]) -> None:
    """No element of a tensor that changes is another one's, or another element of its own."""
    views = sorted({**source.tensors, **source.lifted}.items(), key=lambda item: (item[1].storage.key, item[1].offset))
    for name, t in views:
        if name in changing and any(s == 0 for n, s in zip(t.shape, t.stride, strict=True) if n > 1):
            _refuse(f"tensor {shown(name)} repeats its elements (a stride of 0)")
    reach: tuple[str, int, str] = ("", 0, "")
    for name, t in views:
        if t.storage.key == reach[0] and t.offset < reach[1] and {name, reach[2]} & changing:
            _refuse(f"tensors {shown(reach[2])} and {shown(name)} overlap in {t.storage.key}")
        reach = max(reach, (t.storage.key, t.last, name)) if t.storage.key == reach[0] else (t.storage.key, t.last, name)


def _refuse(why: str):
    raise InputRefused("not-representable", f"{why}, so that its values cannot change in place; choose packed or safetensors, or leave it out by ignore")


class Pt2Reader:
    """The result, read back by this service's own reader. That torch.export.load opens it, the load proof shows."""

    reader = "modelpress pt2"

    def __init__(self, files: Path):
        (path,) = files.glob("*.pt2")
        self.file = Pt2File(path, path.name)

    def __enter__(self) -> Pt2Reader:
        return self

    def __exit__(self, *_) -> None:
        self.file.records.clear()

    def read(self, name: str) -> torch.Tensor:
        return self.file.load(name)

    def stored_bytes(self, name: str) -> int:
        return self.file.specs[name].nbytes
