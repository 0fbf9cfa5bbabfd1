"""Opens what a user uploaded, whatever its format."""

from __future__ import annotations

from pathlib import Path

from app.errors import InputRefused
from app.formats import header_bytes_needed, sniff
from app.limits import Limits
from worker.checkpoint import Checkpoint
from worker.formats.archive import extract_tar, extract_zip
from worker.formats.folder import assemble, list_files, open_folder
from worker.formats.safetensors_file import SafetensorsFile
from worker.formats.torch_zip import TorchFile


def open_checkpoint(folder: Path, scratch: Path, limits: Limits = Limits()) -> Checkpoint:
    """The model in `folder`: one file (weights or an archive), or the files of a model folder.

    Args:
        folder: only read.
        scratch: archives are extracted into a folder of it that must not yet exist.

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
            target = scratch / "extracted"
            target.mkdir(parents=True)
            (extract_zip if kind == "zip" else extract_tar)(path, target, limits)
            return open_folder(target, list_files(target, limits), scratch, kind, limits)
        case "safetensors":
            return assemble(folder, files, {name: SafetensorsFile(path, name, limits)}, None, kind, [])
        case "torch":
            return assemble(folder, files, {name: TorchFile(path, name, scratch, limits)}, None, kind, [])
        case "packed":
            from worker.formats.packed import open_packed

            return open_packed(path)
    raise InputRefused("unsupported-format", f"{name} holds no weights; upload it together with them")


def _sniffed(name: str, path: Path, limits: Limits) -> str:
    size = path.stat().st_size
    with path.open("rb") as f:
        first = f.read(8)
        return sniff(name, first + f.read(header_bytes_needed(first) - 8), size, limits)
