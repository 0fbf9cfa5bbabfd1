"""Reads a model folder: which files hold the weights, whether an index agrees with them, and what lies beside them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path, PurePosixPath

import torch

from app.errors import InputRefused
from app.formats import TORCH, is_pickle, is_zip, suffix
from app.limits import Limits, check_path, shown
from app.safetensors_header import check_json
from worker.checkpoint import Checkpoint
from worker.formats.pickle_globals import ALLOWED, check_global
from worker.formats.pickle_walk import scan_globals
from worker.formats.safetensors_file import SafetensorsFile
from worker.formats.sensitive import strips
from worker.formats.torch_zip import TorchFile, open_records, read_record

_PICKLES = (*TORCH, ".pkl", ".pickle", ".joblib", ".dill", ".sav")
_TRAINERS = ("transformers", "accelerate", "trl", "peft")  # whose objects a training_args.bin holds; it is never loaded here
_CONFIG_BYTES = 4 << 20

WeightFile = SafetensorsFile | TorchFile


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
        raise InputRefused("no-tensors", f"there are no weights among {len(files)} files ({', '.join(map(shown, list(files)[:5]))}); read are .safetensors, .pt, .pth, .bin and .ckpt")
    folder = _main_folder(weights, files)
    chosen = _chosen(folder, {p: w for p, w in weights.items() if _parent(p) == folder}, files, limits, notes)
    if other := [p for p in weights if p not in chosen and _parent(p) != folder]:
        notes.append(f"{len(other)} weight files in other folders are kept as they are: {', '.join(other[:5])}")
    return assemble(root, files, chosen, _config(files.get(_join(folder, "config.json")), limits), container, notes)


def assemble(root: Path, files: dict[str, Path], chosen: dict[str, WeightFile], config: dict | None, container: str, notes: list[str]) -> Checkpoint:
    """A checkpoint of weight files whose names are distinct."""
    owner = {name: weight for weight in chosen.values() for name in weight.specs}

    def load(name: str) -> torch.Tensor:
        return owner[name].load(name)

    counts = Counter(d.name for w in chosen.values() for d in w.dropped)
    taken = {n for w in chosen.values() for n in (*w.specs, *w.aliases)}
    dropped = [d for w in chosen.values() for d in w.dropped if counts[d.name] == 1 and d.name not in taken]
    if not owner:
        raise InputRefused("no-tensors", "the file holds no tensor")
    return Checkpoint(
        root=root,
        files=files,
        weight_files=tuple(chosen),
        tensors={name: spec for w in chosen.values() for name, spec in w.specs.items()},
        aliases={alias: name for w in chosen.values() for alias, name in w.aliases.items()},
        dropped=dropped,
        config=config,
        container=container,
        metadata={path: w.metadata for path, w in chosen.items() if w.metadata},
        load=load,
        segments={path: w.segments for path, w in chosen.items()},
        notes=notes + [note for w in chosen.values() for note in w.notes],
    )


def _parent(path: str) -> str:
    parent = PurePosixPath(path).parent.as_posix()
    return "" if parent == "." else parent


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _judged(files: dict[str, Path], scratch: Path, limits: Limits, notes: list[str]) -> dict[str, WeightFile]:
    """Every weight file, opened; other pickles are scanned."""
    weights: dict[str, WeightFile] = {}
    legacy: dict[str, InputRefused] = {}
    for path, p in files.items():
        end = suffix(path)
        with p.open("rb") as f:
            head = f.read(64)
        if head.startswith(b"version https://git-lfs.github.com/spec/"):
            raise InputRefused("lfs-pointer", f"{shown(path)} is a git-lfs pointer, not the file itself; run `git lfs pull` and upload again")
        if PurePosixPath(path).name.startswith("._") or "__MACOSX" in path.split("/"):
            continue  # macOS keeps a file's attributes beside it under its name
        try:
            if end == ".safetensors":
                weights[path] = SafetensorsFile(p, path, limits)
            elif end in _PICKLES and (is_zip(head) or is_pickle(head)):
                if strips(path) or end not in TORCH:
                    _scan(p, limits)
                else:
                    weights[path] = TorchFile(p, path, scratch, limits)
            elif end in TORCH and end != ".bin":
                raise InputRefused("invalid-torch", "the file is neither a zip nor a pickle: not a PyTorch checkpoint")
            elif end == ".bin":
                notes.append(f"{path} is not a PyTorch checkpoint and is kept as it is")
        except InputRefused as e:
            if e.type in ("format-not-allowed", "no-tensors"):
                legacy[path] = e  # harmless where it is not what is to be read
                continue
            raise InputRefused(e.type, f"{shown(path)}: {e.detail}") from None
    if not weights and legacy:
        path, e = next(iter(legacy.items()))
        raise InputRefused(e.type, f"{shown(path)}: {e.detail}")
    notes += [f"{path} is kept as it is and not read: {e.detail}" for path, e in legacy.items()]
    return weights


def _scan(path: Path, limits: Limits) -> None:
    """A pickle that is no weight file is never loaded, and kept only if it names nothing but data and what training libraries put there.

    Raises:
        InputRefused: unsafe-pickle; what a zip's walk raises.
    """

    def check(module: str, name: str) -> None:
        if module.split(".")[0] not in _TRAINERS or "." in name:
            check_global(module, name, ALLOWED | _RANDOM_STATE)

    with path.open("rb") as f:
        if not is_zip(f.read(4)):
            f.seek(0)
            return scan_globals(f.read(limits.pickle_bytes), check, limits)
    records = open_records(path, limits)
    if records["data.pkl"].size > limits.pickle_bytes:
        raise InputRefused("limit-header", f"the pickle has more than {limits.pickle_bytes} bytes")
    return scan_globals(read_record(path, records["data.pkl"]), check, limits)


_RANDOM_STATE = frozenset(f"numpy.{m}" for m in ("ndarray", "dtype", "core.multiarray._reconstruct", "core.multiarray.scalar", "_core.multiarray._reconstruct", "_core.multiarray.scalar"))


def _main_folder(weights: dict[str, WeightFile], files: dict[str, Path]) -> str:
    """The one with a config.json beside its weights, then the topmost, then the first by name."""
    folders = {_parent(p) for p in weights}
    return min(folders, key=lambda f: (_join(f, "config.json") not in files, f.count("/") + bool(f), f))


def _chosen(folder: str, weights: dict[str, WeightFile], files: dict[str, Path], limits: Limits, notes: list[str]) -> dict[str, WeightFile]:
    """The weight files of a folder that are read: safetensors before pickles, an index before names."""
    safetensors = {p: w for p, w in weights.items() if suffix(p) == ".safetensors"}
    group = safetensors or weights
    if safetensors and len(weights) > len(safetensors):
        notes.append(f"{', '.join(p for p in weights if p not in safetensors)}: checked and kept as it is; the weights are read from safetensors")
    index = _join(folder, "model.safetensors.index.json" if safetensors else "pytorch_model.bin.index.json")
    whole = _join(folder, "model.safetensors" if safetensors else "pytorch_model.bin")
    if index in files and whole not in group:
        chosen = _indexed(files[index], index, folder, group, limits)
    else:
        chosen = _distinct(group, whole)
    if left := [p for p in group if p not in chosen]:
        notes.append(f"{', '.join(left[:5])}: checked and kept as it is; the weights are read from {', '.join(list(chosen)[:3])}")
    return chosen


def _distinct(group: dict[str, WeightFile], whole: str) -> dict[str, WeightFile]:
    """All files of the group when no two hold a tensor of the same name, else the one with the usual name."""
    names = Counter(n for w in group.values() for n in (*w.specs, *w.aliases))
    if not (twice := next((n for n, count in names.items() if count > 1), None)):
        return group
    if whole in group:
        return {whole: group[whole]}
    raise InputRefused("invalid-hf", f"tensor {shown(twice)} is in more than one of {', '.join(map(shown, list(group)[:5]))}; upload one set of weights")


def _indexed(path: Path, name: str, folder: str, group: dict[str, WeightFile], limits: Limits) -> dict[str, WeightFile]:
    """The shards that an index names, when it and they agree on every tensor.

    Raises:
        InputRefused: invalid-hf.
    """
    index = _json(path, name, limits, limits.safetensors_header_bytes, pairs=2 * limits.tensors)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise InputRefused("invalid-hf", f"{name} has no weight_map from tensor names to file names")
    chosen: dict[str, WeightFile] = {}
    for shard in dict.fromkeys(weight_map.values()):
        if _join(folder, shard) not in group:
            raise InputRefused("invalid-hf", f"{name} names {shown(shard)}, which is not among the files beside it")
        chosen[_join(folder, shard)] = group[_join(folder, shard)]
    held = {n: p for p, w in chosen.items() for n in (*w.specs, *w.aliases)}
    if sum(len(w.specs) + len(w.aliases) for w in chosen.values()) != len(held):
        raise InputRefused("invalid-hf", f"two of the shards that {name} names hold a tensor of the same name")
    for tensor, shard in weight_map.items():
        if held.get(tensor) != _join(folder, shard):
            raise InputRefused("invalid-hf", f"{name} says that tensor {shown(tensor)} is in {shown(shard)}; it is " + (f"in {shown(held[tensor])}" if tensor in held else "in none of the shards"))
    if unnamed := next((n for n in held if n not in weight_map), None):
        raise InputRefused("invalid-hf", f"{name} does not name tensor {shown(unnamed)}, which {shown(held[unnamed])} holds")
    return chosen


def _config(path: Path | None, limits: Limits) -> dict | None:
    return None if path is None else _json(path, "config.json", limits, _CONFIG_BYTES, pairs=limits.tensors)


def _json(path: Path, name: str, limits: Limits, most: int, pairs: int) -> dict:
    """A JSON object from a file of the folder.

    Raises:
        InputRefused: invalid-hf, limit-header, limit-depth, limit-entries.
    """
    if (size := path.stat().st_size) > most:
        raise InputRefused("limit-header", f"{name} has {size} bytes; at most {most} are taken")
    raw = path.read_bytes()
    check_json(raw, limits, pairs, pairs)
    try:
        value = json.loads(raw.decode())
    except ValueError as e:  # not UTF-8, not JSON, an integer of thousands of digits
        raise InputRefused("invalid-hf", f"{name} is not JSON in UTF-8: {str(e)[:100]}") from None
    if not isinstance(value, dict):
        raise InputRefused("invalid-hf", f"{name} is not a JSON object")
    return value


def list_files(root: Path, limits: Limits) -> dict[str, Path]:
    """Every file by its relative path, sorted.

    Raises:
        InputRefused: unsafe-archive or limit-name for a path that is not safe to use.
    """
    found = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    for path in found:
        check_path(path, limits)
    return dict(sorted(found.items()))
