"""Reads a model folder: which files hold the weights, whether an index agrees with them, and what lies beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch

from app.errors import InputRefused
from app.formats import TORCH, is_pickle, is_zip, suffix
from app.limits import Limits, check_path, shown
from app.safetensors_header import PACKED
from app.sensitive import strips
from app.shards import choose, join, main_folder, parent, read_config
from worker.checkpoint import Checkpoint, Dropped
from worker.formats.pickle_globals import ALLOWED, check_global
from worker.formats.pickle_scan import scan_globals
from worker.formats.pt2_file import Pt2File
from worker.formats.safetensors_file import SafetensorsFile
from worker.formats.torch_zip import TorchFile, open_records, read_record

_PICKLES = (*TORCH, ".pkl", ".pickle", ".joblib", ".dill", ".sav")
_TRAINERS = ("transformers", "accelerate", "trl", "peft")  # whose objects a training_args.bin holds; it is never loaded here
_RANDOM_STATE = {f"numpy.{n}" for n in ("ndarray", "dtype", *(f"{c}.multiarray.{f}" for c in ("core", "_core") for f in ("_reconstruct", "scalar")))}

WeightFile = SafetensorsFile | TorchFile | Pt2File


def open_folder(root: Path, files: dict[str, Path], scratch: Path, container: str, limits: Limits) -> Checkpoint:
    """The weights beside the topmost config.json (or the topmost weights), with everything else as plain files.

    Every file that some program would unpickle is judged, whether it is read or not. Where safetensors and a .bin hold the same weights, the
    safetensors are read; the .bin is checked and stays a plain file.

    Raises:
        InputRefused: what the files' own readers raise; invalid-hf for a bad index or config; no-tensors.
    """
    notes: list[str] = []
    weights = _judged(files, scratch, limits, notes)
    if not weights:
        some = ", ".join(map(shown, list(files)[:5]))
        raise InputRefused("no-tensors", f"there are no weights among {len(files)} files ({some}); read are .safetensors, .pt, .pth, .bin and .ckpt")

    def read(path: str, most: int) -> bytes:
        with files[path].open("rb") as f:
            return f.read(most)

    folder = main_folder(weights, files)
    chosen = choose(folder, {p: w for p, w in weights.items() if parent(p) == folder}, files, read, limits, notes)
    if other := [p for p in weights if p not in chosen and parent(p) != folder]:
        notes.append(f"{len(other)} weight files in other folders are kept as they are: {', '.join(other[:5])}")
    config = join(folder, "config.json")
    return assemble(root, files, chosen, read_config(read, config, limits) if config in files else None, container, notes)


def assemble(root: Path, files: dict[str, Path], chosen: dict[str, WeightFile], config: dict | None, container: str, notes: list[str]) -> Checkpoint:
    """A checkpoint of weight files whose names are distinct."""
    owner = {name: weight for weight in chosen.values() for name in weight.specs}

    def load(name: str) -> torch.Tensor:
        return owner[name].load(name)

    if not owner:
        raise InputRefused("no-tensors", "the file holds no tensor")
    return Checkpoint(
        root=root,
        files=files,
        weight_files=tuple(chosen),
        tensors={name: spec for w in chosen.values() for name, spec in w.specs.items()},
        aliases={alias: name for w in chosen.values() for alias, name in w.aliases.items()},
        dropped=_dropped(chosen),
        config=config,
        container=container,
        metadata={path: w.metadata for path, w in chosen.items() if w.metadata},
        load=load,
        segments={path: w.segments for path, w in chosen.items()},
        notes=notes + [note for w in chosen.values() for note in w.notes],
        offsets={name: at for w in chosen.values() for name, at in w.offsets.items()},
    )


def _dropped(chosen: dict[str, WeightFile]) -> list[Dropped]:
    """What the weight files leave behind, each under a name of its own."""
    taken = {n for w in chosen.values() for n in (*w.specs, *w.aliases)}
    out = []
    for path, weight in chosen.items():
        for d in weight.dropped:
            name = f"{path}: {d.name}" if len(chosen) > 1 else d.name
            while name in taken:
                name += " (dropped)"
            taken.add(name)
            out.append(replace(d, name=name))
    return out


def _judged(files: dict[str, Path], scratch: Path, limits: Limits, notes: list[str]) -> dict[str, WeightFile]:
    """Every weight file, opened; whatever else a program might unpickle is scanned. One bad file refuses the whole upload."""
    weights: dict[str, WeightFile] = {}
    for path, p in files.items():
        if PurePosixPath(path).name.startswith("._") or "__MACOSX" in path.split("/"):
            continue  # macOS keeps a file's attributes beside it under its name
        try:
            weight = _judge(path, p, scratch, limits)
        except InputRefused as e:
            if e.type != "no-tensors":
                raise InputRefused(e.type, f"{shown(path)}: {e.detail}") from None
            notes.append(f"{path} is kept as it is: {e.detail}")
        else:
            if weight is not None:
                weights[path] = weight
            elif suffix(path) in TORCH and not strips(path):
                notes.append(f"{path} is not a PyTorch checkpoint and is kept as it is")
    return weights


def _judge(path: str, p: Path, scratch: Path, limits: Limits) -> WeightFile | None:
    with p.open("rb") as f:
        head = f.read(64)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise InputRefused("lfs-pointer", "a git-lfs pointer stands where the file should be; run `git lfs pull` and upload again")
    end = suffix(path)
    if end == ".safetensors":
        weight = SafetensorsFile(p, path, limits)
        if weight.metadata.get("format") == PACKED:
            raise InputRefused("unsupported-format", "a packed file is an input on its own; upload it alone")
        return weight
    if end in TORCH and not strips(path) and (is_zip(head) or is_pickle(head)):
        return TorchFile(p, path, scratch, limits)
    if end in TORCH and end != ".bin" and not strips(path):
        raise InputRefused("invalid-torch", "the file is neither a zip nor a pickle: not a PyTorch checkpoint")
    if end == ".pt2":
        Pt2File(p, path, limits)  # which loaders would unpickle; it is no weight file of a folder
    elif end in _PICKLES or is_pickle(head):
        _scan(p, limits)
    return None


def _scan(path: Path, limits: Limits) -> None:
    """A pickle that is no weight file is never loaded, and kept only if it names nothing but data and what training libraries put there.

    Raises:
        InputRefused: unsafe-pickle; what a zip's walk raises.
    """

    def check(module: str, name: str) -> None:
        if module.split(".")[0] not in _TRAINERS or "." in name:
            check_global(module, name, ALLOWED | _RANDOM_STATE)

    with path.open("rb") as f:
        head = f.read(4)
        f.seek(0)
        if not is_zip(head):  # some .bin are no pickles at all; from protocol 2 on a pickle says that it is one
            return scan_globals(f.read(limits.pickle_bytes), check, limits, pickles=1 if is_pickle(head) else 0)
    records = open_records(path, limits)
    if records["data.pkl"].size > limits.pickle_bytes:
        raise InputRefused("limit-header", f"the pickle has more than {limits.pickle_bytes} bytes")
    return scan_globals(read_record(path, records["data.pkl"]), check, limits)


def list_files(root: Path, limits: Limits) -> dict[str, Path]:
    """Every file by its relative path, sorted.

    Raises:
        InputRefused: unsafe-archive or limit-name for a path that is not safe to use.
    """
    found = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    for path in found:
        check_path(path, limits)
    return dict(sorted(found.items()))
