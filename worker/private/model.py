"""Looks through a whole checkpoint for what its owner may not want to publish, and says what each file would be without it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import InputRefused
from app.formats import TORCH, suffix
from app.limits import Limits
from app.sensitive import side_file, strips
from worker.checkpoint import Checkpoint
from worker.formats.pt2_file import Pt2File
from worker.formats.safetensors_file import SafetensorsFile
from worker.formats.torch_zip import TorchFile
from worker.private import archives, binaries, texts, weights
from worker.private.patterns import masked, spans

_LARGEST = 512 << 20  # bytes of a file beside the weights that is looked through


@dataclass
class Private:
    """Attributes:
    findings: `[{where, what, masked?}]`, for the report; values themselves are never repeated.
    left_out: files that a stripped result does not have.
    replaced: file -> its bytes without what tells.
    rewrite: weight files, opened, that have to be written anew -> the `__metadata__` that stays.
    metadata: the safetensors metadata that stays, by file. config: config.json as it stays.
    paths: file -> its path in a stripped result, where that is another one.
    """

    findings: list[dict] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)
    replaced: dict[str, bytes] = field(default_factory=dict)
    rewrite: dict[str, tuple[Any, dict[str, str]]] = field(default_factory=dict)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)
    config: dict | None = None
    paths: dict[str, str] = field(default_factory=dict)

    @property
    def listed(self) -> list[dict]:
        return texts.listed(self.findings)


def look(checkpoint: Checkpoint, inp: Path, scratch: Path, limits: Limits = Limits()) -> Private:
    """Args:
    inp: what was uploaded: an archive is looked at for what it says beside its files.
    scratch: free to use, for weights that lie deflated.
    """
    out = Private(config=checkpoint.config)
    if checkpoint.container in ("zip", "tar"):
        for path in inp.iterdir():
            out.findings += archives.look(path, path.name, checkpoint.container, limits)
    for path, source in checkpoint.files.items():
        new, told = archives.renamed(path)
        out.findings += [texts.finding("the path of a file", s.what, path[s.start : s.end]) for s in told]
        if told and new:
            out.paths[path] = new if new not in {*checkpoint.files, *out.paths.values()} else f"{len(out.paths)}-{Path(new).name}"
        if path not in checkpoint.weight_files and (what := side_file(path)):
            out.findings.append({"where": path, "what": what})
            out.left_out.add(path)
        else:
            _file(path, source, checkpoint, out, scratch, limits)
    out.findings += [{"where": d.name, "what": d.reason} for d in checkpoint.dropped if not d.kept_in and (d.nbytes or checkpoint.program is None)]
    names = "\n".join((*checkpoint.tensors, *checkpoint.aliases))
    out.findings += [{"where": "the name of a tensor, which stays", "what": s.what, "masked": masked(names[s.start : s.end])} for s in spans(names)]
    return out


def _file(path: str, source: Path, checkpoint: Checkpoint, out: Private, scratch: Path, limits: Limits) -> None:
    name = without_user(path)
    if (opened := _weights(path, source, scratch, limits)) is not None:
        kept, found = weights.metadata(name, opened.metadata)
        dropped = bool(opened.dropped)
        if isinstance(opened, TorchFile):
            found += weights.pickle_strings(name, source, limits)
        elif isinstance(opened, Pt2File):
            found += weights.program_strings(name, source, limits)
            dropped = True  # what a program says beside its arithmetic is written anew whole
        out.findings += found
        if opened.metadata:
            out.metadata[path] = kept
        if found or dropped:
            out.rewrite[path] = (opened, kept)
        return
    if source.stat().st_size > _LARGEST:
        out.findings.append({"where": name, "what": f"a file of more than {_LARGEST >> 20} MiB that is not looked through"})
        out.left_out.add(path)
        return
    data = source.read_bytes()
    text = _text(data)
    if text is not None:
        looked = texts.look(name, text)
        clean = None if looked.clean is None else looked.clean.encode()
    else:
        looked = binaries.look(name, data)
        clean = looked.clean
        if clean is None:
            out.left_out.add(path)
    out.findings += looked.findings
    if looked.findings and clean is not None:
        out.replaced[path] = clean
        if path.rsplit("/", 1)[-1] == "config.json" and checkpoint.config is not None:
            out.config = texts.values(checkpoint.config, name, [])


def without_user(path: str) -> str:
    return archives.renamed(path)[0] or path


def _text(data: bytes) -> str | None:
    if b"\0" in data[:4096]:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _weights(path: str, source: Path, scratch: Path, limits: Limits) -> SafetensorsFile | TorchFile | Pt2File | None:
    """The file opened by its reader; None for what is no weight file, or none that can be read."""
    end = suffix(path)
    try:
        if end == ".safetensors":
            return SafetensorsFile(source, path, limits)
        if end == ".pt2":
            return Pt2File(source, path, limits)
        if end in TORCH and not strips(path):
            return TorchFile(source, path, scratch, limits)
    except InputRefused:
        return None
    return None
