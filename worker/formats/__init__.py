"""Opens what a user uploaded, whatever its format."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from app.errors import InputRefused
from app.formats import header_bytes_needed, sniff
from app.limits import Limits
from worker.checkpoint import Checkpoint
from worker.formats.archive import extract_zip
from worker.formats.folder import assemble, list_files, open_folder
from worker.formats.pt2_file import Pt2File
from worker.formats.safetensors_file import SafetensorsFile
from worker.formats.tar_walk import extract_tar
from worker.formats.torch_zip import TorchFile


def open_checkpoint(folder: Path, scratch: Path, limits: Limits = Limits()) -> Checkpoint:
    """The model in `folder`: one file (weights or an archive), or the files of a model folder.

    Args:
        folder: only read.
        scratch: archives are extracted into a new folder of it.

    Raises:
        InputRefused: with the reason.
    """
    files = list_files(folder, limits)
    if not files:
        raise InputRefused("no-tensors", "nothing was uploaded")
    if len(files) > 1:
        return open_folder(folder, files, scratch, "folder", limits)
    ((name, path),) = files.items()
    match kind := _sniffed(name, path, limits):
        case "zip" | "tar":
            target = Path(tempfile.mkdtemp(prefix="extracted-", dir=scratch))
            (extract_zip if kind == "zip" else extract_tar)(path, target, limits)
            return open_folder(target, list_files(target, limits), scratch, kind, limits)
        case "safetensors":
            return assemble(folder, files, {name: SafetensorsFile(path, name, limits)}, None, kind, [])
        case "torch":
            return assemble(folder, files, {name: TorchFile(path, name, scratch, limits)}, None, kind, [])
        case "pt2":
            file = Pt2File(path, name, limits)
            return replace(assemble(folder, files, {name: file}, None, kind, []), program=file)
        case "packed":
            return _restored(path, scratch, limits)
    raise InputRefused("unsupported-format", f"{name} holds no weights; upload it together with them")


def _restored(path: Path, scratch: Path, limits: Limits) -> Checkpoint:
    """What a packed file was made of."""
    from worker.formats.packed import restore_packed

    target = scratch / "restored"
    if target.exists():
        raise InputRefused("invalid-packed", "a packed file that holds nothing but a packed file; restore it instead")
    restore_packed(path, target, lambda nbytes: None, limits)
    checkpoint = open_checkpoint(target, scratch, limits)
    checkpoint.container = "packed"
    return checkpoint


def _sniffed(name: str, path: Path, limits: Limits) -> str:
    size = path.stat().st_size
    with path.open("rb") as f:
        first = f.read(8)
        return sniff(name, first + f.read(header_bytes_needed(first) - 8), size, limits)
