"""What the tests of readers upload: checkpoints, folders and archives, made here."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from app.errors import InputRefused
from app.limits import Limits
from worker.checkpoint import Checkpoint
from worker.formats import open_checkpoint


def upload(tmp_path: Path, files: dict[str, bytes], limits: Limits = Limits()) -> Checkpoint:
    inp, scratch = tmp_path / "in", tmp_path / "scratch"
    for name, data in files.items():
        (inp / name).parent.mkdir(parents=True, exist_ok=True)
        (inp / name).write_bytes(data)
    scratch.mkdir(exist_ok=True)
    return open_checkpoint(inp, scratch, limits)


def refused(tmp_path: Path, files: dict[str, bytes], limits: Limits = Limits()) -> str:
    """The reason; nothing may have been written but into the scratch."""
    with pytest.raises(InputRefused) as e:
        upload(tmp_path, files, limits)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "scratch"}
    return e.value.type


def saved(value: object, **options) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z:
        for name, data in members.items():
            z.writestr(name, data)
        z.comment = comment
    return out.getvalue()


def tarred(members: dict[str, bytes], format: int = tarfile.PAX_FORMAT, mode: str = "w") -> bytes:
    """Names that end in / are folders."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=format) as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name.rstrip("/") or ".")
            info.type, info.size, info.mtime = (tarfile.DIRTYPE, 0, 1.5) if name.endswith("/") else (tarfile.REGTYPE, len(data), 1.5)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


def checkpoint_of(pkl: bytes, records: dict[str, bytes] | None = None) -> bytes:
    """A checkpoint with a pickle written by hand."""
    return zipped({"archive/data.pkl": pkl, "archive/version": b"3\n"} | {f"archive/data/{k}": v for k, v in (records or {}).items()})


class Calls:
    """Pickles as a call of `function`: what a hostile file holds."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


def payload(canary: Path, protocol: int = 2) -> bytes:
    """A pickle that writes a file when it is loaded."""
    return pickle.dumps({"w": Calls(exec, f"open({str(canary)!r}, 'w')")}, protocol)
