"""What weight files tell beside their tensors, and the same tensors in files that hold nothing else."""

from __future__ import annotations

import json
import pickletools
import shutil
import struct
from pathlib import Path

import torch

from app.formats import parse_safetensors_header
from app.limits import Limits, shown
from app.sensitive import allowed_metadata
from worker.formats.pt2_file import PROGRAM, Pt2File
from worker.formats.pt2_writer import rewrite
from worker.formats.safetensors_file import SafetensorsFile
from worker.formats.torch_zip import TorchFile, open_records, read_record
from worker.private import archives, binaries
from worker.private.patterns import NAMED, masked, named, spans
from worker.private.texts import finding, values

_COPY = 8 << 20
_LONGEST = 1 << 20  # characters of one string of a pickle
BEYOND = "metadata beyond the allow-list"


def metadata(file: str, told: dict[str, str]) -> tuple[dict[str, str], list[dict]]:
    """The `__metadata__` that may stay, and findings in it."""
    kept, found = {}, []
    for key, value in told.items():
        where = f"{file}: __metadata__ {shown(key) if not spans(key) else masked(key)}"
        told_by = [finding(where, s.what, text[s.start : s.end]) for text in (key, value) for s in spans(text)]
        if not told_by and (not allowed_metadata(key) or (value and named(key))):
            told_by = [finding(where, NAMED if named(key) else BEYOND, value)]
        if told_by:
            found += told_by
        else:
            kept[key] = value
    return kept, found


def pickle_strings(file: str, path: Path, limits: Limits) -> list[dict]:
    """Findings in the strings of a checkpoint's pickle, which has been walked before, and in what its zip says beside its records."""
    found: list[dict] = []
    records = open_records(path, limits)
    strings = (arg for _, arg, _ in pickletools.genops(read_record(path, records["data.pkl"])) if type(arg) in (str, bytes, bytearray))
    seen: set[str] = set()
    for arg in strings:
        text = arg if type(arg) is str else bytes(arg).decode("latin-1")
        if len(text) >= 6 and text not in seen:
            seen.add(text)
            found += [finding(f"{file}: data.pkl", s.what, text[s.start : s.end]) for s in spans(text[:_LONGEST])]
    for name, member in records.items():
        if name != "data.pkl" and not name.startswith("data/"):
            found += binaries.look(f"{file}: {name}", read_record(path, member)).findings
    return found + binaries.look(f"{file}: headers", archives.zip_gaps(path, limits)).findings


def program_strings(file: str, path: Path, limits: Limits) -> list[dict]:
    """Findings in the program of a `.pt2` as it was, in the exporter's files, and in what the zip says beside its members."""
    opened, found = Pt2File(path, file, limits), []
    values(json.loads(opened.small(PROGRAM, limits.program_bytes)), f"{file}: {PROGRAM}", found)
    for name, member in opened.members.items():
        if name.startswith("extra/") or "sample_inputs" in name:
            found += binaries.look(f"{file}: {name}", opened.small(name, member.size)).findings
    return found + binaries.look(f"{file}: headers", archives.zip_gaps(path, limits)).findings


def rewritten(opened: SafetensorsFile | TorchFile | Pt2File, source: Path, target: Path, kept: dict[str, str]) -> None:
    """The same tensors, bit for bit. `kept`: the `__metadata__` of a safetensors file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(opened, Pt2File):
        rewrite(opened, target)
    elif isinstance(opened, TorchFile):
        _resaved(opened, target)
    else:
        _safetensors(source, target, kept)


def _resaved(opened: TorchFile, target: Path) -> None:
    """A state dict and nothing else; names of one memory stay ties."""
    state = {name: _alone(opened.load(name)) for name in opened.tensors}
    torch.save(state | {alias: state[name] for alias, name in opened.aliases.items()}, target)


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """torch.save writes a tensor's whole storage."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _safetensors(source: Path, target: Path, kept: dict[str, str]) -> None:
    """The same safetensors file with other `__metadata__`."""
    size = source.stat().st_size
    with source.open("rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = parse_safetensors_header(struct.pack("<Q", length) + f.read(length), size)
        entries = {n: {"dtype": d, "shape": list(s), "data_offsets": [a, b]} for n, (d, s, a, b) in header.entries.items()}
        text = json.dumps(({"__metadata__": kept} if kept else {}) | entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        with target.open("wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            shutil.copyfileobj(f, out, _COPY)
