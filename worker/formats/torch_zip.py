"""Reads a PyTorch checkpoint as torch.save has written it since 1.6: a zip of a pickle and one record per storage.

    <root>/data.pkl   the object, each storage as ('storage', type, key, location, numel)
    <root>/data/<key> the storage's bytes, stored, aligned
    <root>/version, byteorder, .format_version, ...

The pickle is walked, never run; tensors are views that this module makes itself on the mapped records. `torch.load` is not called.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from app.errors import InputRefused
from app.limits import Limits, shown
from worker.checkpoint import Dropped, TensorSpec
from worker.formats.archive import member_chunks
from worker.formats.pickle_globals import check_global
from worker.formats.pickle_scan import scan_globals
from worker.formats.pickle_tensors import Storage, Tensor
from worker.formats.pickle_walk import Walk
from worker.formats.state_dict import find_tensors
from worker.formats.views import Record, Views, tied
from worker.formats.zip_walk import STORED, Member, walk_zip

_RESAVE = "load it with torch yourself, if you trust it, and save model.state_dict() again with a current torch.save, or as safetensors"


def _invalid(why: str) -> InputRefused:
    return InputRefused("invalid-torch", why)


def open_records(path: Path, limits: Limits) -> dict[str, Member]:
    """The zip's members by their name below its one root.

    Raises:
        InputRefused: unsafe-archive, invalid-archive, invalid-torch, format-not-allowed for TorchScript.
    """
    members = walk_zip(path, limits, entries=limits.tensors + 16)
    roots = {m.name.split("/", 1)[0] for m in members}
    records = {m.name.split("/", 1)[-1]: m for m in members if not m.is_folder}
    if len(roots) > 1:
        raise InputRefused("unsafe-archive", f"a checkpoint has one root folder; this one has {', '.join(map(shown, sorted(roots)[:3]))}")
    if "constants.pkl" in records or any(name.startswith("code/") for name in records):
        raise InputRefused("format-not-allowed", f"the file is TorchScript, a program that runs when it is loaded; {_RESAVE}")
    if "data.pkl" not in records:
        if any(name.casefold().rsplit("/", 1)[-1] == "data.pkl" for name in records):
            raise InputRefused("unsafe-archive", "the checkpoint's data.pkl is not called data.pkl, or not where it must be")
        raise _invalid(f"the zip has no data.pkl: not a checkpoint of torch.save (members: {', '.join(map(shown, sorted(records)[:3]))})")
    for name in records:
        if not (name in ("data.pkl", "version", "byteorder") or name.startswith(".") or re.fullmatch(r"data/[0-9A-Za-z_]+", name)):
            raise _invalid(f"the checkpoint has a member {shown(name)}, which torch.save does not write")
    return records


def read_record(path: Path, member: Member) -> bytes:
    with path.open("rb") as f:
        return b"".join(member_chunks(f, member))


def _check_versions(path: Path, records: dict[str, Member]) -> None:
    for name, valid in (("version", rb"([1-9]|10)\s*"), ("byteorder", rb"little")):
        if name in records:
            value = read_record(path, records[name]) if records[name].size <= 64 else b"?"
            if not re.fullmatch(valid, value):
                raise _invalid(f"the checkpoint's {name} is {shown(value.decode('latin-1'))}; read are version 1 to 10 and byteorder little")


class TorchFile(Views):
    """One checkpoint's tensors; `rel` is its path in the checkpoint, `scratch` takes inflated records.

    Raises:
        InputRefused: invalid-torch, unsafe-archive, invalid-archive, unsafe-pickle, invalid-pickle, invalid-tensor, limit-*, bad-tensor-name,
            no-tensors, format-not-allowed.
    """

    def __init__(self, path: Path, rel: str, scratch: Path, limits: Limits):
        self.path, self.metadata = path, {}
        with path.open("rb") as f:
            head = f.read(4)
        if head[:2] != b"PK":
            refuse_legacy(path, limits)
        records = open_records(path, limits)
        _check_versions(path, records)
        if (size := records["data.pkl"].size) > limits.pickle_bytes:
            raise InputRefused("limit-header", f"the checkpoint's pickle has {size} bytes; at most {limits.pickle_bytes} are taken")
        root = Walk(read_record(path, records["data.pkl"]), limits).result
        found = find_tensors(root, limits)
        self._check_storages([*found.tensors.values(), *found.others], records, path.stat().st_size, limits)
        self.records = self._check_bytes(records, scratch)
        self.tensors, self.aliases = tied(found.tensors)
        self.specs = {n: TensorSpec(n, t.dtype, t.shape, t.nbytes, rel) for n, t in self.tensors.items()}
        used = {f"data/{t.storage.key}" for t in (*found.tensors.values(), *found.others)}
        unused = [Dropped(n, m.size, "no tensor uses this storage") for n, m in records.items() if n.startswith("data/") and n not in used]
        self.dropped: list[Dropped] = found.dropped + unused
        self.notes: list[str] = found.notes

    def _check_storages(self, tensors: list[Tensor], records: dict[str, Member], size: int, limits: Limits) -> None:
        """Every storage is there with the bytes that the pickle says; what distinct views take once contiguous stays within bounds."""
        storages: dict[str, Storage] = {}
        for t in tensors:
            s = t.storage
            if storages.setdefault(s.key, s) != s:
                raise InputRefused("invalid-tensor", f"storage {s.key} is described in two ways")
        for s in storages.values():
            member = records.get(f"data/{s.key}")
            if member is None:
                raise InputRefused("invalid-tensor", f"storage {s.key} has no record data/{s.key}")
            if member.size != s.nbytes:
                raise InputRefused("invalid-tensor", f"storage {s.key} has {member.size} bytes, and the pickle says {s.nbytes}")
        if (total := sum(t.nbytes for t in set(tensors))) > limits.materialised(size):
            most = limits.materialised(size)
            raise InputRefused("limit-materialised", f"the tensors take {total} bytes, from a file of {size}; at most {most} are taken")

    def _check_bytes(self, records: dict[str, Member], scratch: Path) -> dict[str, Record]:
        """Check every record's checksum; inflate those that are not stored, so that they can be mapped."""
        out, inflated = {}, None
        with self.path.open("rb") as f:
            for name, member in records.items():
                if member.method == STORED:
                    for _ in member_chunks(f, member):
                        pass
                    out[name] = Record(self.path, member.offset, member.size)
                elif name.startswith("data/"):
                    inflated = inflated or Path(tempfile.mkdtemp(prefix="inflated-", dir=scratch))
                    target = inflated / name.removeprefix("data/")
                    with target.open("xb") as g:
                        g.writelines(member_chunks(f, member))
                    out[name] = Record(target, 0, member.size)
        return out


def refuse_legacy(path: Path, limits: Limits) -> None:
    """A file from before torch 1.6 is never read; one that names code is told apart.

    Raises:
        InputRefused: always: unsafe-pickle, format-not-allowed or invalid-torch.
    """
    with path.open("rb") as f:
        data = f.read(limits.pickle_bytes)
    starts = range(0, len(data), 512) if data[257:262] == b"ustar" else (0,)  # torch 0.1 wrote a tar of pickles
    if not any(data[at : at + 1] == b"\x80" for at in starts):
        raise _invalid("the file is neither a zip nor a pickle: not a PyTorch checkpoint")
    for at in starts:
        if data[at : at + 1] == b"\x80":
            scan_globals(data[at:], check_global, limits, pickles=1 if len(starts) > 1 else 5)  # after five come the storages' bytes
    raise InputRefused("format-not-allowed", f"the file was saved before torch 1.6, or by pickle itself, and is never loaded here; {_RESAVE}")
